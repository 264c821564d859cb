"""Any fsspec filesystem as a place for artifacts: S3, GCS, Azure, `memory://` and others.

Errors of the libraries below become one `StorageError` that names the object, with the secrets of
URLs masked, and without its chain, because a chained traceback would print them.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from storage.clouds import explain, is_refused, open_url, reason_of, status_of
from storage.errors import StorageError, redact
from storage.filesystem import CHUNK, FileState

# What filesystems call the time of an object's last change.
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
PAUSES = (1.0, 4.0, 16.0)
_LOOKS = 20  # listings of a folder whose names keep vanishing, before that is an error
_NOT_FOUND = 404
_NO_CONNECTION = "check the address and the connection, then run again: finished work is kept"


class ObjectFiles:
    """Objects below one URL, with the methods of `storage.filesystem.LocalFiles`.

    An object store shows an upload when it is complete, so every write is whole; of two exclusive
    creations one wins.

    Args:
        uri: Any fsspec URL; credentials come from the environment.
        pauses: Seconds before each further attempt of a write, after the library's own attempts.

    Raises:
        StorageError: The scheme is unknown, needs a package, or the URL is malformed.
    """

    def __init__(self, uri: str, pauses: Sequence[float] = PAUSES) -> None:
        self.uri = redact(uri)
        self._pauses = pauses
        with self._naming("open", ""):
            self._fs, root = open_url(uri)
        self._root = str(root).rstrip("/")

    def url(self, name: str) -> str:
        """Return the URL of a name."""
        return self._fs.unstrip_protocol(self._path(name))

    def read(self, name: str) -> bytes | None:
        """Return an object's content, or None where it does not exist."""
        with self._naming("read", name):
            try:
                return self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Replace an object; a reader sees the old or the new one whole."""
        with self._naming("write", name):
            self._patiently(lambda: self._fs.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> bool:
        """Write a new object; return False and leave it unchanged if it exists.

        A lost acknowledgement also looks like "exists": if equal bytes are there, they are ours,
        because every content that is created here names its writer. Some servers ignore the
        condition and overwrite, so the object is looked up first: with those, only two
        simultaneous creations may both succeed, and the last one wins.
        """
        there = self.read(name)
        if there is not None:
            return there == data
        with self._naming("write", name):
            try:
                self._patiently(lambda: self._fs.pipe_file(self._path(name), data, mode="create"))
            except FileExistsError:
                return self.read(name) == data  # None where its owner has removed it meanwhile
            return True

    def put(self, source: Path, name: str) -> None:
        """Upload a finished local file to a new name."""
        with self._naming("write", name):
            self._patiently(lambda: self._fs.put_file(str(source), self._path(name)))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield an object's content piece by piece."""
        with (
            self._naming("read", name),
            self._fs.open(self._path(name), "rb", block_size=CHUNK, cache_type="readahead") as file,
        ):
            while chunk := file.read(CHUNK):
                yield chunk

    def list(self, folder: str) -> list[str]:
        """Return the names directly in a folder, sorted; none where there is no folder."""
        with self._naming("list", folder):
            self._fs.invalidate_cache()
            try:
                names = self._names(self._path(folder))
            except FileNotFoundError:
                return []
        return sorted(f"{folder}/{str(item).rstrip('/').rsplit('/', 1)[-1]}" for item in names)

    def states(self, folder: str) -> dict[str, FileState]:
        """Return the state of every object below a folder, by name relative to it."""
        base = self._path(folder)
        with self._naming("list", folder):
            self._fs.invalidate_cache()
            infos = self._fs.find(base, detail=True)
            if not isinstance(infos, dict):  # adlfs gives names where `base` is an object
                infos = {path: self._fs.info(path) for path in infos}
        start = len(base.lstrip("/")) + 1
        return {
            str(path).lstrip("/")[start:]: FileState(info["size"], _modified(info), 0)
            for path, info in infos.items()
        }

    def modified(self, folder: str) -> float:
        """Return when anything in a folder changed last, in seconds since 1970.

        Where the store does not say, it is now, so that nothing counts as too old.
        """
        times = [state.modified for state in self.states(folder).values()]
        return max(times) / 1e9 if times and all(times) else time.time()

    def links(self, folder: str) -> set[str]:
        """Return an empty set: object stores have no links."""
        del folder
        return set()

    def is_linked(self, name: str) -> bool:
        """Return False: object stores have no links."""
        del name
        return False

    def remove(self, name: str) -> None:
        """Remove an object or a whole folder, if it is there."""
        with self._naming("remove", name):
            self._fs.invalidate_cache()
            try:
                self._fs.rm(self._path(name), recursive=True)
            except FileNotFoundError:
                return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _names(self, path: str) -> Sequence[str]:
        """List again if a name vanished meanwhile: `memory://` looks each up a second time."""
        for _ in range(_LOOKS):
            with suppress(KeyError):
                return self._fs.ls(path, detail=False)
        return self._fs.ls(path, detail=False)

    def _patiently(self, write: Callable[[], None]) -> None:
        """Retry a write after short outages: hours of work may depend on it."""
        for pause in self._pauses:
            try:
                return write()
            except (FileExistsError, FileNotFoundError):
                raise
            except Exception as error:  # each library has classes of its own for "no connection"
                if is_refused(error):
                    raise
                time.sleep(pause)
        return write()

    @contextmanager
    def _naming(self, verb: str, name: str) -> Generator[None]:
        place = f"{self.uri.rstrip('/')}/{name}" if name else self.uri
        try:
            yield
        except Exception as error:  # each library has classes of its own
            if isinstance(error, ImportError) and (failure := explain(self.uri, error)):
                raise StorageError(f"{place} {failure.reason}", failure.remedy) from None
            if isinstance(error, FileNotFoundError) or status_of(error) == _NOT_FOUND:
                reason, remedy = "there is no such bucket or object", "check the address"
            elif failure := explain(self.uri, error):
                reason, remedy = failure
            elif isinstance(error, PermissionError):
                reason, remedy = "permission denied", "check the credentials or rights"
            else:
                reason, remedy = reason_of(error), _NO_CONNECTION
            raise StorageError(f"cannot {verb} {place}: {reason}", remedy) from None


def _modified(info: dict[str, Any]) -> int:
    changed = next((info[key] for key in _TIMES if info.get(key) is not None), 0)
    if isinstance(changed, str):  # GCS
        changed = datetime.fromisoformat(changed)
    seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed)
    return int(seconds * 1e9)
