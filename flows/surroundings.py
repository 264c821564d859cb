"""The environment of a command, made harmless: proxies, and the terminal's encoding.

The chat uses this file too, so it knows neither stores nor Prefect.
"""

import io
import os
import sys

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SPARED = ("NO_PROXY", "no_proxy")  # where both are set, most libraries read the second one only


def spare_loopback() -> None:
    """Have this process and its children speak to this machine itself without a proxy.

    A proxy is another machine, or does not know that it is meant: it would answer that nobody is
    there. Whatever else the environment exempts stays exempted.
    """
    known = [name.strip() for key in _SPARED for name in os.environ.get(key, "").split(",")]
    names = ["*"] if "*" in known else [*filter(None, dict.fromkeys([*known, *LOOPBACK]))]
    os.environ |= dict.fromkeys(_SPARED, ",".join(names))


def print_anything() -> None:
    """Have standard output show `?` for what its encoding lacks, where it would end the command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
