"""A bounded local cache of immutable files from a remote store, checked by hash on arrival.

It is filled and emptied artifact by artifact. A reader holds a shared lock on an artifact as long
as its cache object lives, so that no artifact in use is evicted; a lock ends with its process.
"""

import fcntl
import os
import re
import shutil
import time
import weakref
from contextlib import suppress
from pathlib import Path

from storage.errors import ChecksumError
from storage.filesystem import local_error, state_of
from storage.store.manifest import FileRecord, Manifest
from storage.store.stamps import Stamps

_KEY = re.compile(r"[0-9a-f]{32}")  # the start of a digest
_DOOMED = re.compile(rf"{_KEY.pattern}\.\d+\.old")


class ReadCache:
    """Complete local copies of remote files; the least recently used artifacts are evicted first.

    Args:
        root: Local folder of the cache.
        limit: Bytes that the cache may hold; only artifacts in use may exceed it.
        stamps: Which copies were verified.
    """

    def __init__(self, root: Path, limit: int, stamps: Stamps) -> None:
        self.root = root
        self.limit = limit
        self._stamps = stamps
        self._held: dict[str, int] = {}
        weakref.finalize(self, _close, self._held)

    def fetch(self, manifest: Manifest, record: FileRecord, url: str) -> tuple[Path, str]:
        """Return a local copy of the remote file at `url`, and what is wrong with that file.

        Files of one artifact keep their names below a folder of its digest, so that libraries
        can load a whole directory. A copy that was altered here is fetched again.

        Returns:
            The path and "", or a reason why the remote file is not what was committed.

        Raises:
            StorageError: The file cannot be fetched, or the local disk cannot be written.
        """
        key = manifest.digest[:32]
        target = self.root / key / record.name
        try:
            self._hold(key, manifest)
            if not self._stamps.fault(key, target, record):
                return target, ""
        except OSError as error:
            raise local_error("use", target, error) from error
        try:
            _download(url, target, record)
        except ChecksumError:
            return target, f"{record.name} was altered"
        self._stamps.add(key, {record.name: state_of(target)})
        return target, ""

    def _hold(self, key: str, manifest: Manifest) -> None:
        """Lock an artifact for reading as long as this object lives, and make room for it once."""
        if key in self._held:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        self._held[key] = self._lock(key)
        missing = sum(record.bytes for record in manifest.files) - _size(self.root / key)
        self._shrink(self.limit - max(0, missing))

    def _lock(self, key: str) -> int:
        path = self.root / f"{key}.lock"
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(handle, fcntl.LOCK_SH)
            if _is(path, handle):
                os.utime(handle)  # its time says when the artifact was used last
                return handle
            os.close(handle)  # it was evicted between open and lock

    def _shrink(self, limit: int) -> None:
        locks: list[tuple[float, Path]] = []
        for lock in self.root.glob("*.lock"):
            if not _KEY.fullmatch(lock.stem):
                continue
            with suppress(FileNotFoundError):  # another process evicts too
                locks.append((lock.stat().st_mtime, lock))
        sizes = {lock.stem: _size(self.root / lock.stem) for _, lock in locks}
        excess = sum(sizes.values()) - limit
        for _, lock in sorted(locks):
            if excess <= 0:
                return
            if lock.stem not in self._held and self._evict(lock):
                excess -= sizes[lock.stem]

    def _evict(self, lock: Path) -> bool:
        # Blocked: it is in use. Not found, or unlinked: another process was faster.
        with suppress(BlockingIOError, FileNotFoundError), lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(lock, stream.fileno()):
                # Renamed first: a kill leaves no incomplete artifact under a valid name.
                doomed = self.root / f"{lock.stem}.{time.time_ns()}.old"
                with suppress(FileNotFoundError):
                    (self.root / lock.stem).rename(doomed)
                self._stamps.forget(lock.stem)
                lock.unlink()
                for old in self.root.glob("*.old"):
                    if _DOOMED.fullmatch(old.name):
                        shutil.rmtree(old, ignore_errors=True)
                return True
        return False


def _download(url: str, target: Path, record: FileRecord) -> None:
    from storage.fetch.transfer import download  # too slow to import for `plan`

    checksum = f"sha256:{record.sha256}"
    try:
        download(url, target, checksum=checksum, size=record.bytes, advance=lambda _: None)
    except ChecksumError:
        # Once more: a bit flipped in transfer must not cause the artifact to be made again.
        download(url, target, checksum=checksum, size=record.bytes, advance=lambda _: None)


def _is(path: Path, handle: int) -> bool:
    """Return whether an open file still has the name `path`."""
    with suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(handle).st_ino
    return False


def _size(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError):  # another process may remove it meanwhile
        for path in folder.rglob("*"):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _close(held: dict[str, int]) -> None:
    for handle in held.values():
        os.close(handle)
