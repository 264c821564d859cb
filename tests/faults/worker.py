"""Runs the whole DAG of the demo on one store, stage by stage, without Prefect's server.

`python -m tests.faults.worker STORE [dotted.path=value …]` prints `start`, then a line per stage.
"""

import sys

from pipeline.dag import DAG
from pipeline.materialize import Outcome, materialize
from pipeline.presets import preset
from pipeline.progress import ConsoleReporter
from pipeline.runs import record_run
from pipeline.settings import Settings
from storage.artifacts import ArtifactStore


def run(store_uri: str, changes: dict[str, object]) -> None:
    """Make every stage, as the flow does."""
    print("start", flush=True)
    recipe = preset("demo").override(changes)
    settings = Settings(store=store_uri, wandb="disabled", device="cpu", threads=1)
    store = ArtifactStore(settings.store, settings.work / "cache")
    outcomes: dict[str, Outcome] = {}
    for stage in DAG:
        inputs = {name: outcomes[name].manifest for name in stage.inputs_with(recipe)}
        outcome = materialize(stage, recipe, inputs, store, settings, ConsoleReporter())
        outcomes[stage.name] = outcome
        print(stage.name, outcome.status, f"{outcome.seconds:.2f}", flush=True)
    record_run(store, recipe, list(outcomes.values()))


if __name__ == "__main__":
    run(sys.argv[1], dict(argument.split("=", 1) for argument in sys.argv[2:]))
