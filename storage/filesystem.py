"""The local disk as a place for artifacts: every write is whole and durable, or not there at all.

`storage.store.objects` has the same methods for fsspec's filesystems.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from storage.errors import StorageError, is_full

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 4 * 2**20
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})  # of folders on some network mounts


class FileState(NamedTuple):
    """A file's metadata; equal states mean equal content, as in git's index.

    Attributes:
        bytes: Size.
        modified: Time of the last change in ns since 1970; 0 where unknown.
        inode: Number of the file on its disk, 0 elsewhere.
    """

    bytes: int
    modified: int
    inode: int


class LocalFiles:
    """Files of a folder on this machine. Names are relative to it, with forward slashes.

    Every method raises StorageError, which names the file, if the disk fails.

    Attributes:
        root: The folder.
        uri: The same, for messages.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def path(self, name: str) -> Path:
        """Return the path of a name."""
        return self.root / name

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None where it does not exist."""
        with self._naming("read", name):
            try:
                return self.path(name).read_bytes()
            except (FileNotFoundError, IsADirectoryError):
                return None

    def write(self, name: str, data: bytes) -> None:
        """Replace a file; a reader sees the old or the new one whole."""
        with self._naming("write", name):
            replace_file(self.path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file; return False and leave it unchanged if it exists."""
        with self._naming("write", name), _temporary(self.path(name), data) as temporary:
            return _name_anew(temporary, self.path(name))

    def put(self, source: Path, name: str) -> None:
        """Hard-link a finished file to a new name, or copy it where links do not work."""
        with self._naming("write", name):
            target = self.path(name)
            make_folder(target.parent)
            sync_file(source)
            try:
                os.link(source, target)
            except OSError:  # another disk, or one without links
                copy_file(source, target)
            sync_directory(target.parent)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's content piece by piece."""
        with self._naming("read", name), self.path(name).open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk

    def list(self, folder: str) -> list[str]:
        """Return the names directly in a folder, sorted; none where there is no folder."""
        with self._naming("list", folder):
            try:
                return sorted(f"{folder}/{path.name}" for path in self.path(folder).iterdir())
            except FileNotFoundError:
                return []

    def states(self, folder: str) -> dict[str, FileState]:
        """Return the state of every file below a folder, by name relative to it."""
        root = self.path(folder)
        with self._naming("list", folder):
            states = {}
            for path in walk(root):
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file():
                        states[path.relative_to(root).as_posix()] = state_of(path)
            return states

    def modified(self, folder: str) -> float:
        """Return when anything in a folder changed last, in seconds since 1970."""
        # A linked file keeps its old time, so the folders that it was linked into count too.
        root, newest = self.path(folder), 0.0
        with self._naming("list", folder):
            for path in (root, *walk(root)):
                with contextlib.suppress(FileNotFoundError):
                    newest = max(newest, path.stat().st_mtime)
        return newest

    def links(self, folder: str) -> set[str]:
        """Return the symbolic links below a folder, by name relative to it; we make none."""
        root = self.path(folder)
        with self._naming("list", folder):
            return {path.relative_to(root).as_posix() for path in walk(root) if path.is_symlink()}

    def is_linked(self, name: str) -> bool:
        """Return whether a name, or a folder on the way to it, is a symbolic link."""
        path = self.path(name)
        return any(each.is_symlink() for each in (path, *path.parents[: name.count("/")]))

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder, if it is there."""
        path = self.path(name)
        with self._naming("remove", name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def _naming(self, verb: str, name: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise local_error(verb, self.path(name), error) from error


def local_error(verb: str, path: Path, error: OSError) -> StorageError:
    """Return the error for a failed operation on the local disk."""
    if is_full(error):
        return StorageError(
            f"cannot {verb} {path}: no space left",
            "free some space and run again: finished work is kept",
        )
    return StorageError(
        f"cannot {verb} {path}: {error.strerror or error}",
        "check that the folder exists and its permissions, or choose another store",
    )


def walk(root: Path) -> Iterator[Path]:
    """Yield every path below a folder, except those that vanish meanwhile; none for a file.

    Raises:
        OSError: A folder cannot be read.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for folder, folders, files in os.walk(root, onerror=fail):
        yield from (Path(folder, name) for name in (*folders, *files))


def walk_files(root: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield every path below a folder that is not a folder, sorted; links to folders are followed.

    Args:
        root: The folder.
        above: Real paths of the folders that led here, to stop at symlink loops.

    Raises:
        OSError: A folder cannot be read.
    """
    real = os.path.realpath(root)
    if real in above:
        return
    with os.scandir(root) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        # DirEntry.is_dir raises on symlink loops.
        if Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir():
            yield from walk_files(Path(entry.path), above | {real})
        else:
            yield Path(entry.path)


def state_of(path: Path) -> FileState:
    """Return the metadata of a local file."""
    status = path.stat()
    return FileState(status.st_size, status.st_mtime_ns, status.st_ino)


def unseen(amount: int) -> None:
    """Ignore progress, for callers that show none."""
    del amount


def hash_file(path: Path, algorithm: "_Hash", advance: Callable[[int], None] = unseen) -> str:
    """Return the hexadecimal hash of a local file, read in chunks."""
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            algorithm.update(chunk)
            advance(len(chunk))
    return algorithm.hexdigest()


def replace_file(path: Path, data: bytes) -> None:
    """Replace a local file atomically and durably.

    The temporary file is in the same folder, because a rename is atomic within one filesystem
    only, and is synced before the rename, because a power cut could leave an empty file otherwise.
    """
    with _temporary(path, data) as temporary:
        temporary.replace(path)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the target appears whole and durable."""
    temporary = _beside(target)
    try:
        shutil.copyfile(source, temporary)
        sync_file(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably: a synced file in a lost folder is lost."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the filesystem supports it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


@contextmanager
def _temporary(path: Path, data: bytes) -> Generator[Path]:
    """Yield a durable file beside `path`; it is gone afterwards, unless it was renamed."""
    make_folder(path.parent)
    temporary = _beside(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def _name_anew(source: Path, target: Path) -> bool:
    """Rename a file unless the target exists; return whether it did."""
    try:
        os.link(source, target)  # unlike a rename, it refuses to replace
    except FileExistsError:
        return False
    except OSError:  # a disk without links: two at once may both succeed, and the last one wins
        if target.exists():
            return False
        source.replace(target)
    return True


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
