"""The Python process: garbage collection during imports, import path of children, quick exit.

Torch, open_clip, Lightning and Prefect together are 700,000 objects. While they are imported the
collector looks through them again and again, and once more when the interpreter ends. Of 15 seconds
in which a process did nothing but import them and end, 5 were that.
"""

import atexit
import faulthandler
import gc
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_INSTALLED = ("site-packages", "dist-packages")  # where Python finds us by itself


@contextmanager
def importing() -> Generator[None]:
    """Hold the garbage collector while libraries are imported: nothing of theirs is garbage."""
    held = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if held:
            gc.enable()


def child_environment() -> dict[str, str]:
    """Return the environment of a Python of ours that imports what this one imports.

    By itself `python -m` looks into the current folder first, where a `pipeline.py` or a
    `random.py` of somebody else may lie.
    """
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if ROOT.name not in _INSTALLED:
        paths = [str(ROOT), *(path for path in paths if path != str(ROOT))]
    found = os.pathsep.join(filter(None, paths))
    return {**os.environ, "PYTHONSAFEPATH": "1", **({"PYTHONPATH": found} if found else {})}


def leave_quickly() -> None:
    """Exit without a final garbage collection, which takes seconds, and without a list of leaks.

    To be called before libraries register what they do at the end, so that it comes after them.
    """
    atexit.register(_leave)


def _leave() -> None:
    # Without the collection, DuckDB's binding and Triton's write to C's stderr that all they hold
    # has leaked. What Python itself says, and a crash, still go to the real one.
    real = os.dup(2)
    sys.stderr = os.fdopen(real, "w", buffering=1, closefd=False)
    faulthandler.enable(real)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    gc.freeze()
