"""What fsspec leaves open: atomic small writes, durable links, errors that name the place."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem

from storage.errors import StorageError

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 4 * 2**20


def is_local(fs: Any) -> bool:
    """Return whether an fsspec filesystem is this machine's own disk."""
    return isinstance(fs, LocalFileSystem)


def redacted(uri: str) -> str:
    """Return a URL without user, password and query, which may hold credentials."""
    return re.sub(r"//[^/@]*@", "//", uri).split("?", 1)[0]


def hash_file(path: Path, algorithm: "_Hash") -> str:
    """Return the hexadecimal hash of a local file, read in chunks."""
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            algorithm.update(chunk)
    return algorithm.hexdigest()


def read_bytes(fs: Any, path: str) -> bytes | None:
    """Return a whole object, or None where it does not exist.

    Raises:
        StorageError: It exists but cannot be read.
    """
    try:
        return fs.cat_file(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(
            f"cannot read {redacted(path)}: {error}", "check the store's address and permissions"
        ) from error


def write_bytes(fs: Any, path: str, data: bytes) -> None:
    """Write a whole object or nothing; a reader never sees a part of it.

    On a local disk: temporary file in the same directory, fsync, rename, fsync of the
    directory. Object stores make an upload visible when it is complete.

    Raises:
        StorageError: The object cannot be written; names the place and, if the disk is full,
            says so.
    """
    try:
        if is_local(fs):
            replace_file(Path(path), data)
        else:
            fs.pipe_file(path, data)
    except OSError as error:
        reason = "no space left" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise StorageError(
            f"cannot write {redacted(path)}: {reason}",
            "check space and permissions, then run again: finished work is kept",
        ) from error


def replace_file(path: Path, data: bytes) -> None:
    """Replace a local file atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a finished local file a second name, or copy it across filesystems; then sync it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as stream:
        os.fsync(stream.fileno())
    with contextlib.suppress(FileExistsError):
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise
            temporary = target.with_name(f".{target.name}.tmp")
            shutil.copyfile(source, temporary)
            temporary.replace(target)
    sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
