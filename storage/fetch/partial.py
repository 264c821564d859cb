"""The unfinished bytes of one download, and what is known of them.

``NAME.part`` holds the bytes, ``NAME.part.json`` says which remote object they belong to. Both stay
beside the target, so that the last step is a rename within one filesystem. The record holds the
redacted URL: no secret reaches the disk, and a freshly signed URL still resumes.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from filelock import FileLock

from storage.errors import ChecksumError, StorageError, is_full, redact
from storage.filesystem import hash_file, replace_file, sync_directory

if TYPE_CHECKING:
    from hashlib import _Hash


@contextmanager
def locked(target: Path) -> Generator[None]:
    """Make a target's folder and keep other processes from making the same target.

    Raises:
        StorageError: The folder cannot be written.
    """
    lock = FileLock(target.with_name(f"{target.name}.part.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise StorageError(
            f"cannot write in {target.parent}: {error.strerror or error}",
            "choose a folder that may be written",
        ) from error
    try:
        yield
    finally:
        # Removed while still held: filelock notices that its lock file is unlinked and retries.
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def hasher(algorithm: str) -> "_Hash":
    """Return a fresh hash; MD5 is what COCO publishes, and it guards against damage only."""
    return hashlib.md5(usedforsecurity=False) if algorithm == "md5" else hashlib.sha256()


class PartialFile:
    """The bytes of one target so far, with their running hash.

    Use it as a context manager: what was received stays on disk for the next run.

    Attributes:
        offset: Bytes on disk.
        version: The remote object they come from, as `Stream.version`, with the agreed size.
        joined: Whether they come from more than one connection.

    Args:
        url: Where the bytes come from.
        target: The finished file's path.
        checksum: ``md5:HEX`` or ``sha256:HEX``, or None.
        advance: Called with the bytes gained; negative for bytes discarded.

    Raises:
        StorageError: The folder cannot be written.
    """

    def __init__(
        self, url: str, target: Path, checksum: str | None, advance: Callable[[int], None]
    ) -> None:
        self.url, self.name, self.target = url, redact(url), target
        self.algorithm, _, self.wanted = (checksum or "").partition(":")
        self.offset, self.joined = 0, False
        self.version: dict[str, str] = {}
        self._advance = advance
        self._path, self._record = _paths(target)
        self._hash = hasher(self.algorithm) if checksum else None
        try:
            self._handle = self._path.open("ab")
            self._resume()
        except OSError as error:
            raise self._cannot_write(error, 0) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk was already reported
            self._handle.close()
        if self.offset == 0:
            remove_parts(self.target)

    def _resume(self) -> None:
        known, held = self._read_record(), self._handle.tell()
        if not known or not 0 < held <= int(known.get("size", held)):
            return self.restart()
        if self._hash is not None:
            # Also finds bytes that a power cut turned to zeros: the checksum will not match.
            hash_file(self._path, self._hash)
        self.version, self.offset, self.joined = known, held, True
        return self._advance(held)

    def _read_record(self) -> dict[str, str]:
        try:
            known = json.loads(self._record.read_text("utf-8"))
            version = {str(field): str(value) for field, value in known["version"].items()}
            int(version.get("size", "0"))
            return version if known["url"] == self.name else {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}  # no record or a truncated one: the origin of the bytes is unknown

    def restart(self) -> None:
        """Discard the bytes."""
        self._handle.truncate(0)
        self._hash = hasher(self.algorithm) if self._hash is not None else None
        if self.offset:
            self._advance(-self.offset)
        self.offset, self.joined, self.version = 0, False, {}

    def describe(self, version: dict[str, str], total: int | None) -> None:
        """Record which object the next bytes belong to, and check that there is room for them.

        Raises:
            StorageError: The disk is too small for the rest.
        """
        self.joined = self.offset > 0
        self.version = version if total is None else {**version, "size": str(total)}
        if total is not None and total - self.offset > self._free():
            raise self._no_room(total - self.offset)
        record = json.dumps({"url": self.name, "version": self.version}).encode()
        try:
            replace_file(self._record, record)
        except OSError as error:
            raise self._cannot_write(error, len(record)) from error

    def is_complete(self, size: int | None) -> bool:
        """Return whether all `size` bytes are here, so that no connection is needed."""
        known = int(self.version.get("size", "-1"))
        if size is not None and known not in {size, -1}:
            self.restart()
        return self.offset > 0 and self.offset == known

    def append(self, chunk: bytes) -> None:
        """Write bytes at the end.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        try:
            self._handle.write(chunk)
            self._handle.flush()
        except OSError as error:
            raise self._cannot_write(error, len(chunk)) from error
        if self._hash is not None:
            self._hash.update(chunk)
        self.offset += len(chunk)
        self._advance(len(chunk))

    def verify(self) -> None:
        """Check the whole file's checksum.

        Raises:
            ChecksumError: It differs; names the address, what was expected and what was found.
        """
        if self._hash is None or self._hash.hexdigest() == self.wanted:
            return
        raise ChecksumError(
            f"{self.name} has the wrong checksum: expected {self.algorithm}:{self.wanted}, "
            f"found {self.algorithm}:{self._hash.hexdigest()} over {self.offset} bytes",
            "the download was removed: run again, and if it differs again the source has "
            "changed and the recipe needs its new checksum",
        )

    def publish(self) -> None:
        """Give the file its name, durably."""
        try:
            os.fsync(self._handle.fileno())
            self._handle.close()
            self._path.replace(self.target)
            self._record.unlink(missing_ok=True)
            sync_directory(self.target.parent)
        except OSError as error:
            raise self._cannot_write(error, 0) from error

    def _free(self) -> int:
        return shutil.disk_usage(self.target.parent).free

    def _no_room(self, needed: int) -> StorageError:
        return StorageError(
            f"not enough disk space in {self.target.parent} for {self.target.name}: {needed} "
            f"more bytes are needed, {self._free()} are free",
            "free space or choose another folder, then run again: the bytes so far are kept",
        )

    def _cannot_write(self, error: OSError, pending: int) -> StorageError:
        if is_full(error):
            total = int(self.version.get("size", "0"))
            return self._no_room(max(pending, total - self.offset))
        return StorageError(
            f"cannot write {self.target}: {error.strerror or error}",
            "check that the folder exists and may be written",
        )


def remove_parts(target: Path) -> None:
    """Remove the unfinished bytes of `target` and their record."""
    for path in _paths(target):
        path.unlink(missing_ok=True)


def _paths(target: Path) -> tuple[Path, Path]:
    return target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")
