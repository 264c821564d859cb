"""Keep a command working whatever its environment: proxies, and the terminal's encoding.

The chat uses this file too, so it imports neither stores nor Prefect.
"""

import io
import os
import sys

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SPARED = ("NO_PROXY", "no_proxy")  # where both are set, most libraries read the second one only


def spare_loopback() -> None:
    """Make this process and its children connect to this machine without a proxy.

    A proxy would look for the server on its own machine and answer that none is there. Other
    exemptions of the environment are kept.
    """
    known = [name.strip() for key in _SPARED for name in os.environ.get(key, "").split(",")]
    names = ["*"] if "*" in known else [*filter(None, dict.fromkeys([*known, *LOOPBACK]))]
    os.environ |= dict.fromkeys(_SPARED, ",".join(names))


def print_anything() -> None:
    """Make standard output print `?` for characters its encoding lacks, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
