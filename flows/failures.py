"""Turn an exception into text for the user: what is wrong, and the remedy."""

import errno
from typing import TYPE_CHECKING

from pydantic import ValidationError

from model.errors import ModelError
from pipeline.errors import UnreachableError
from storage.errors import ExpectedError, TransientError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run again, finished work is kept",
    errno.EDQUOT: "your quota of the disk is used up: free some space and run again",
    errno.EACCES: "permission denied: choose another folder or fix its permissions",
    errno.EROFS: "the file system is read-only: choose another store with --store",
    errno.EMFILE: "raise ulimit -n, e.g. ulimit -n 4096: finished work is kept",
    errno.ENFILE: "too many files are open on this machine: close other programs",
    errno.EADDRINUSE: "the port is in use: stop the other server or choose another port",
    errno.ENOENT: "no such file: check the path",
    errno.EISDIR: "this is a folder: name a file",
    errno.ENOTDIR: "a part of this path is a file, not a folder: check the path",
}

# A user without an account on the machine, as in containers; libraries look both up when imported.
_NOBODY = {
    "Could not determine home directory": "this user has no home folder\n  → set HOME to a folder "
    "that can be written",
    "uid not found": "this user has no name\n  → set USER to any name",
}


def explain(error: BaseException) -> str | None:
    """Return what is wrong and the remedy; None for a defect, which deserves its traceback."""
    if isinstance(error, ExpectedError | ModelError):
        return str(error)
    if isinstance(error, RuntimeError | KeyError | OSError):
        for words, text in _NOBODY.items():
            if words in str(error):
                return text
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}\n  → {_REMEDIES[error.errno]}"
    if isinstance(error, ValidationError):
        return _invalid(error.title, error.errors()[0])
    return None


def _invalid(title: str, first: "ErrorDetails") -> str:
    """Return what pydantic refused, and for a setting where its value may come from."""
    place = ".".join(str(step) for step in first["loc"])
    line = f"{place}: {first['msg']} (got {str(first['input'])[:80]!r})"
    if title != "Settings":
        return line
    variable = f"PHIVISION_{place.upper()}"
    return f"{line}\n  → fix {variable} or the option of that name; without it the default applies"


def may_pass(error: object) -> bool:
    """Return whether the same work may succeed a little later.

    True where a server or store did not answer; a wrong checksum, a full disk or a defect remains.
    """
    return isinstance(error, UnreachableError | TransientError)
