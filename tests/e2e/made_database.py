"""Prefect's database as its server makes it anew: made once, copied for the servers of other files.

Making it takes 4 of the 9 seconds of processor time in which a server starts. The first server of
a test run makes its own, as anybody's does.
"""

import atexit
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path


@contextmanager
def database_in(home: Path) -> Generator[None]:
    """Put the database into a server's home; if there is none yet, keep the one that it makes.

    Args:
        home: Where the server, which is ready when the block ends, has its database.
    """
    kept = _place()
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = kept.exists()
        if known:
            fcntl.flock(lock, fcntl.LOCK_UN)
            copy_database(home)
        yield
        if not known:
            _keep(home / "prefect.db", kept)


def copy_database(home: Path) -> None:
    """Put the database into a server's home, if there is one yet."""
    home.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        shutil.copy(_place(), home / "prefect.db")


def _place() -> Path:
    """Return where the processes of this test run keep it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = Path(tempfile.gettempdir(), f"phivision-prefect-{run}")
    folder.mkdir(exist_ok=True)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "prefect.db"


def _keep(made: Path, kept: Path) -> None:
    part = kept.with_suffix(".part")
    with closing(sqlite3.connect(made)) as source, closing(sqlite3.connect(part)) as target:
        source.backup(target)
    part.rename(kept)
