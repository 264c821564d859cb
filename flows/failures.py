"""From an exception to one clear line that names the thing and the remedy."""

import errno

from pipeline.errors import PipelineError
from storage.errors import StorageError

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run again, finished work is kept",
    errno.EACCES: "permission denied: choose another folder or mend its permissions",
    errno.EROFS: "the file system is read-only: choose another store with --store",
    errno.EADDRINUSE: "the port is in use: stop the other server or choose another port",
    errno.ENOENT: "no such file: check the path",
}


def explain(error: BaseException) -> str | None:
    """Return a line for an expected error, or None for a defect that deserves its traceback."""
    if isinstance(error, PipelineError | StorageError) or type(error).__name__ in _MODEL_ERRORS:
        return str(error)
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}\n  → {_REMEDIES[error.errno]}"
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        first = error.errors()[0]  # ty: ignore[not-callable]
        place = ".".join(str(step) for step in first["loc"])
        return f"{place}: {first['msg']}"
    return None


# By name, because importing the model room would import torch.
_MODEL_ERRORS = frozenset({"ModelError", "BadImageError"})
