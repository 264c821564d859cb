"""A tar to which files are appended as they arrive, resumable after a kill.

Files are appended to ``NAME.part``, each in one write, with its CRC-32 in its header. After a kill
the complete files stay and the rest is cut off. Only a finished tar gets the target's name;
``NAME.faults.json`` beside it lists files that could not be fetched; the next run tries them again.
"""

import json
import os
import shutil
import tarfile
import threading
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from storage.errors import StorageError, is_full
from storage.fetch.partial import locked
from storage.filesystem import replace_file, sync_directory

_CRC = "PHIVISION.crc32"  # our own field in the tar's extended header
_BLOCK = tarfile.BLOCKSIZE


def finished(target: Path) -> bool:
    """Return whether `target` is a finished tar that lacks nothing."""
    return target.is_file() and not _faults(target).exists()


@contextmanager
def gathering(target: Path) -> Generator["GatheredTar"]:
    """Yield the tar that will be `target`, with an earlier run's files; one process at a time.

    It is published if the block ends without an error.

    Raises:
        StorageError: The folder cannot be written or has no room.
    """
    with locked(target):
        if target.is_file():
            target.replace(_part(target))
        tar = GatheredTar(target)
        try:
            yield tar
            tar.publish()
        finally:
            tar.close()


def read_whole(target: Path) -> dict[str, tuple[int, int]] | None:
    """Return size and CRC-32 of each file of a finished tar, None if it is damaged."""
    members: dict[str, tuple[int, int]] = {}
    end = 0
    try:
        with target.open("rb") as handle:
            for name, size, crc, file_end in _whole_files(handle):
                members[name], end = (size, crc), file_end
            handle.seek(end)
            return members if handle.read() == bytes(2 * _BLOCK) else None
    except OSError:
        return None


class GatheredTar:
    """The files fetched so far; several threads may add to it.

    Attributes:
        kept: Size and CRC-32 of each file, by name.
        faults: Why a file cannot be fetched, by name.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.kept: dict[str, tuple[int, int]] = {}
        self.faults: dict[str, str] = {}
        self._lock = threading.Lock()
        part = _part(target)
        with self._writing():
            part.touch()
            self._handle = part.open("r+b")
            end = 0
            for name, size, crc, file_end in _whole_files(self._handle):
                self.kept[name], end = (size, crc), file_end
            self._cut(end)

    def add(self, name: str, data: bytes) -> None:
        """Append a file.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        crc = zlib.crc32(data)
        header = tarfile.TarInfo(name)
        header.size, header.pax_headers = len(data), {_CRC: f"{crc:08x}"}
        block = header.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % _BLOCK)
        with self._lock, self._writing():
            self._handle.write(block)
            self._handle.flush()
            self.kept[name] = len(data), crc

    def restart(self) -> None:
        """Discard the files so far: they belong to another version of the source."""
        with self._writing():
            self.kept.clear()
            self._cut(0)

    def refuse(self, name: str, reason: str) -> None:
        """Record that a file cannot be fetched."""
        with self._lock:
            self.faults[name] = reason

    def check_room(self, needed: int) -> None:
        """Raise StorageError unless the disk has room for `needed` more bytes."""
        free = shutil.disk_usage(self.target.parent).free
        if needed > free:
            raise StorageError(
                f"not enough disk space in {self.target.parent} for {self.target.name}: {needed} "
                f"more bytes are needed, {free} are free",
                "free space or choose another folder, then run again: the files so far are kept",
            )

    def publish(self) -> None:
        """Give the tar its name, durably."""
        with self._writing():
            self._handle.write(bytes(2 * _BLOCK))
            self._handle.flush()
            os.fsync(self._handle.fileno())
            if self.faults:
                replace_file(_faults(self.target), json.dumps(self.faults, indent=1).encode())
            _part(self.target).replace(self.target)
            if not self.faults:
                _faults(self.target).unlink(missing_ok=True)
            sync_directory(self.target.parent)

    def close(self) -> None:
        """Close the file; an unfinished one stays for the next run."""
        with suppress(OSError):  # a full disk was already reported
            self._handle.close()

    def _cut(self, end: int) -> None:
        self._handle.truncate(end)
        self._handle.seek(end)

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if is_full(error):
                self.check_room(shutil.disk_usage(self.target.parent).free + 1)
            raise StorageError(
                f"cannot write {self.target}: {error.strerror or error}",
                "check that the folder exists and may be written",
            ) from error


def _whole_files(handle: IO[bytes]) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, size, CRC-32 and end of each whole file up to the first that is not."""
    size = os.fstat(handle.fileno()).st_size
    try:
        with tarfile.open(fileobj=handle, mode="r:") as tar:
            while (header := tar.next()) is not None:
                end = header.offset_data + header.size + -header.size % _BLOCK
                handle.seek(header.offset_data)
                crc = zlib.crc32(handle.read(header.size)) if end <= size else None
                if crc is None or header.pax_headers.get(_CRC) != f"{crc:08x}":
                    return
                yield header.name, header.size, crc, end
    except tarfile.TarError:
        return  # cut off inside a header


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _faults(target: Path) -> Path:
    return target.with_name(f"{target.name}.faults.json")
