"""Where a stage works until its artifact is committed: a local folder that survives a kill.

Its `scratch` keeps finished work for the process that resumes after the kill. Only the holder of
the artifact's lock works there; without locks each process has its own folder, which is never
resumed.
"""

import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

from storage.filesystem import local_error
from storage.layout import IN_WORKSPACE

FOLDER = "workspaces"
ALONE_FOR = 7 * 86_400.0  # seconds without a change after which an unlocked folder is abandoned
_MARK = "replaces"
_FORCED = "forced "
_PREFIX = 16  # characters of the fingerprint, as in the names of attempts
_OWN = "."  # before the random end of an unlocked folder's name


def workspace_key(stage: str, fingerprint: str) -> str:
    """Return the name of a stage's workspace and of its lock."""
    return f"{stage}-{fingerprint[:_PREFIX]}"


def owner_of(name: str) -> tuple[str, str, bool]:
    """Return stage, start of the fingerprint, and whether a workspace of that name is unlocked."""
    key, own, _ = name.partition(_OWN)
    stage, _, start = key.rpartition("-")
    return stage, start, bool(own)


def replaced_by(folder: Path) -> str:
    """Return the attempt that a workspace is to replace, "" if there is none."""
    with suppress(OSError):
        return (folder / _MARK).read_text().removeprefix(_FORCED)
    return ""


class Workspace:
    """The folder in which one process makes one artifact."""

    def __init__(self, work: Path, key: str, *, exclusive: bool) -> None:
        self._own = not exclusive
        name = f"{key}{_OWN}{uuid.uuid4().hex[:8]}" if self._own else key
        self.path = work / FOLDER / name
        self.out = self.path / f"out-{uuid.uuid4().hex[:8]}"
        self.scratch = self.path / "scratch"

    def open(self, replaces: str | None, *, force: bool) -> None:
        """Create the folders; `out` is empty and `scratch` holds what a killed process left.

        Args:
            replaces: Attempt or fault of the artifact to replace; None if there is none. Files in
                the workspace may be hard links to that artifact's files, with the same damage:
                they are removed, unless a killed process with the same aim left them.
            force: Start empty; only what a killed process with force left is kept.

        Raises:
            StorageError: The folders cannot be made.
        """
        try:
            if force or replaces is not None:
                self._renew(replaces or "", force=force)
            for left in self.path.glob("out-*"):
                if IN_WORKSPACE.fullmatch(left.name):
                    shutil.rmtree(left)
            self.out.mkdir(parents=True)
            self.scratch.mkdir(exist_ok=True)
        except OSError as error:
            raise local_error("create", self.out, error) from error

    def _renew(self, replaces: str, *, force: bool) -> None:
        mark = self.path / _MARK
        known = mark.read_text() if mark.is_file() else None
        forced = f"{_FORCED}{replaces}"
        if known == forced or (known == replaces and not force):
            return
        clear(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        mark.write_text(forced if force else replaces)

    def distrust(self) -> None:
        """Make the next forced attempt start empty: this one failed on what was left there."""
        (self.path / _MARK).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove an unlocked folder, which is never resumed; a locked one stays."""
        if self._own:
            self.remove()

    def remove(self) -> None:
        """Remove the folder, because its artifact is committed."""
        clear(self.path)


def clear(folder: Path) -> None:
    """Remove a workspace; files that are not ours stay, and the folder with them."""
    for path in folder.glob("*"):
        if not IN_WORKSPACE.fullmatch(path.name) or path.is_symlink():
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # it holds something else, or was never made
        folder.rmdir()


def is_deserted(modified: float) -> bool:
    """Return whether an unlocked folder is abandoned, by its last change."""
    return modified < time.time() - ALONE_FOR
