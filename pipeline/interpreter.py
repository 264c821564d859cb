"""The Python process: garbage collection during imports, import path of children, quick exit.

Torch, open_clip, Lightning and Prefect together create 700,000 objects. The garbage collector scans
them repeatedly during the imports, and once more at exit. That took 5 of the 15 seconds of a
process that only imported them and exited.
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
_INSTALLED = ("site-packages", "dist-packages")  # where Python finds this project by itself


@contextmanager
def importing() -> Generator[None]:
    """Disable the garbage collector while libraries are imported: they create no garbage."""
    held = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if held:
            gc.enable()


@contextmanager
def collecting_rarely() -> Generator[None]:
    """Let the garbage collector run once in 50,000 new objects, instead of in 700.

    For loops over many lists and rows, of which none is garbage: looking through them again and
    again took a quarter of the time of the stage `examples`.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def child_environment() -> dict[str, str]:
    """Return an environment for a child Python process that imports the same code as this one.

    By default `python -m` searches the current folder first, which may contain an unrelated
    `pipeline.py` or `random.py`.
    """
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if ROOT.name not in _INSTALLED:
        paths = [str(ROOT), *(path for path in paths if path != str(ROOT))]
    joined = os.pathsep.join(filter(None, paths))
    return {**os.environ, "PYTHONSAFEPATH": "1", **({"PYTHONPATH": joined} if joined else {})}


def leave_quickly() -> None:
    """Exit without a final garbage collection, which takes seconds, and without a list of leaks.

    Call it before libraries register their own exit handlers, so that it runs after them.
    """
    atexit.register(_leave)


def _leave() -> None:
    # Without the final collection, the bindings of DuckDB and Triton report leaks on C's stderr.
    # Python's own messages and crash reports still go to the real stderr.
    real = os.dup(2)
    sys.stderr = os.fdopen(real, "w", buffering=1, closefd=False)
    faulthandler.enable(real)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    gc.freeze()
