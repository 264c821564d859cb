"""Write to the server what `prefect deploy` cannot: `python -m deployments.finish_deploy`.

One process for all of it, since loading Prefect takes longer than the work. Running this again
changes nothing.
"""

import argparse
from collections.abc import Sequence

from deployments import closed_parameters, crash_notice, lost_runs
from flows.surroundings import spare_loopback


def main(arguments: Sequence[str] | None = None) -> None:
    """Close the parameters and install both automations on the server of PREFECT_API_URL."""
    parser = argparse.ArgumentParser(prog="python -m deployments.finish_deploy")
    parser.add_argument(
        "--silence",
        type=float,
        default=lost_runs.SILENCE,
        help="seconds without a heartbeat after which a run counts as crashed; default %(default)s",
    )
    given = parser.parse_args(arguments)
    spare_loopback()
    closed_parameters.close()
    lost_runs.install(given.silence)
    crash_notice.install()


if __name__ == "__main__":
    main()
