"""Uploaded images: a folder with a size limit, from which files are deleted by age.

Gradio loses track of unfinished uploads and of files under another field's name, so the folder
itself is read, not Gradio's record of it.
"""

import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.chat.limits import Limits

_BLOCK = 4096  # bytes that an empty file or folder takes on a disk
_FORM = 64 * 1024  # bytes of a request besides its image


class Uploads:
    """Limits size and age of the folder of uploads.

    Args:
        folder: Where the server puts them.
        limits: How much it holds and for how long.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        self._ours: frozenset[str] = frozenset()
        self._arriving = 0

    def used(self) -> int:
        """Return the bytes of everything in the folder, and of uploads that are still arriving."""
        stored = sum(max(entry.stat.st_size, _BLOCK) for entry in _entries(self.folder))
        return stored + self._arriving

    @property
    def longest(self) -> int:
        """Bytes of the longest request that is read: an image in its form."""
        return self.limits.image_bytes + _FORM

    @property
    def is_full(self) -> bool:
        """Whether the uploads exceed the folder's limit."""
        return self.used() > self.limits.folder_bytes

    @contextmanager
    def arriving(self, length: int) -> Generator[None]:
        """Count an upload in full while it is still arriving."""
        self._arriving += length
        try:
            yield
        finally:
            self._arriving -= length

    @contextmanager
    def swept(self) -> Generator[None]:
        """Keep what is there now, and delete what comes later when it is too old."""
        self._ours = frozenset(entry.path for entry in _entries(self.folder))
        done = threading.Event()
        pause = min(60.0, self.limits.keep_seconds / 4)

        def sweep() -> None:
            while not done.wait(pause):
                self.sweep(time.time())

        sweeper = threading.Thread(target=sweep, name="sweeper", daemon=True)
        sweeper.start()
        try:
            yield
        finally:
            done.set()
            sweeper.join()

    def sweep(self, now: float) -> None:
        """Delete what has been in the folder for longer than the limit.

        Args:
            now: Seconds since 1970.
        """
        for entry in _entries(self.folder):
            # The time of the last rename: an image that is sent again is new again.
            if entry.path in self._ours or now - entry.stat.st_ctime <= self.limits.keep_seconds:
                continue
            try:
                (os.rmdir if entry.is_folder else os.remove)(entry.path)
            except OSError:  # a folder that holds something newer, or gone in the meantime
                continue


class _Entry:
    def __init__(self, dir_entry: os.DirEntry[str]) -> None:
        self.path = dir_entry.path
        self.is_folder = dir_entry.is_dir(follow_symlinks=False)
        self.stat = dir_entry.stat(follow_symlinks=False)


def _entries(folder: str | Path) -> Iterator[_Entry]:
    """Yield all files and folders below a folder, the contents of a folder before the folder."""
    try:
        dir_entries = list(os.scandir(folder))
    except OSError:
        return
    for dir_entry in dir_entries:
        try:
            entry = _Entry(dir_entry)
        except OSError:
            continue
        if entry.is_folder:
            yield from _entries(entry.path)
        yield entry
