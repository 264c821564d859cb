"""One remote object behind any URL: its current version, and its bytes from an offset on.

Errors of the libraries below come out as `StorageError`, shortened, with the secrets of URLs
masked, and without their chain, because a chained traceback would print the raw URL.
"""

import hashlib
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem

from storage.clouds import explain, open_url, reason_of
from storage.errors import MissingError, StorageError, TransientError, redact
from storage.fetch.streams import Stream, agrees
from storage.fetch.web import is_http, open_http, probe_http
from storage.fetch.web import open_range as open_http_range
from storage.filesystem import hash_file, walk_files

_CHUNK = 1 << 20
_BLOCK = 8 << 20  # bytes per request on object stores, where every request costs a round trip
_READ_AT_ONCE = 64 << 20  # bytes of local files that a probe may read: a tenth of a second
_READ_LEAST = 64 << 10  # bytes counted at least per file, for the time that opening takes
# Fields that identify an object's version in each filesystem, and our names for them.
_IDENTITY = {
    "ETag": "etag",
    "etag": "etag",
    "md5Hash": "md5",
    "generation": "generation",
    "LastModified": "modified",
    "last_modified": "modified",
    "mtime": "modified",
    "created": "created",
}


def open_stream(
    url: str, *, offset: int = 0, version: Mapping[str, str] | None = None, timeout: float = 60.0
) -> Stream:
    """Open `url` at byte `offset`, or at 0 if it is no longer the object of `version`.

    Args:
        url: Any fsspec URL, or a local path.
        offset: First byte wanted.
        version: `Stream.version` of the bytes that the caller already has.
        timeout: Seconds of silence after which an HTTP connection or read fails. Other stores have
            a setting of their own.

    Raises:
        TransientError: A retry may help: no connection, silence, HTTP 408, 425, 429 or 5xx. The
            stream's `read` raises it too.
        StorageError: A retry will not help: missing, forbidden, a folder, an unknown scheme.
    """
    with _naming(url):
        known = version or {}
        stream = (
            open_http(url, offset, known, timeout)
            if is_http(url)
            else _open_file(url, offset, known)
        )

    return _named(url, stream)


def open_range(
    url: str, first: int, last: int, *, version: Mapping[str, str], timeout: float
) -> Stream:
    """Open the bytes from `first` to `last`, both included, of an object behind HTTP.

    Args and errors are those of `storage.fetch.web.open_range`; OSError and ValueError come out as
    `TransientError` and `StorageError`.
    """
    with _naming(url):
        return _named(url, open_http_range(url, first, last, version, timeout))


def _named(url: str, stream: Stream) -> Stream:
    def read() -> bytes:
        with _naming(url):
            return stream.read()

    return replace(stream, read=read)


def probe(url: str) -> dict[str, str]:
    """Return a cheap identity of the object at `url`, for detecting whether a source changed.

    A local file or any folder gives the SHA-256 of its sorted rows: the relative name, and for
    small local data the content, for large its size and times, elsewhere the store's own identity.
    HTTP gives ETag, Last-Modified and size, and reads one byte; other stores give what they know.

    Raises:
        StorageError: `url` is missing or cannot be reached.
    """
    with _naming(url):
        if is_http(url):
            return probe_http(url)
        fs, path = _place(url)
        if isinstance(fs, LocalFileSystem):
            return {"listing": _listing(_local_rows(Path(path)))}
        fs.invalidate_cache(path)
        info = fs.info(path)
        return list_files(url)[1] if info["type"] == "directory" else _version(info)


def list_files(url: str) -> tuple[dict[str, int], dict[str, str]]:
    """Return the bytes of each file below a folder of an object store, and the folder's identity.

    Args:
        url: Any fsspec URL but a local or an HTTP one.

    Raises:
        StorageError: It cannot be reached.
    """
    with _naming(url):
        fs, path = _place(url)
        fs.invalidate_cache(path)
        infos = {name[len(path) + 1 :]: info for name, info in fs.find(path, detail=True).items()}
        rows = ((f"/{name}", sorted(_version(info).items())) for name, info in infos.items())
        return {name: info["size"] for name, info in infos.items()}, {"listing": _listing(rows)}


def read_file(url: str, name: str) -> bytes:
    """Return the content of a file below a folder of an object store; safe for several threads.

    Raises:
        TransientError: A retry may help.
        StorageError: It is missing or may not be read.
    """
    with _naming(f"{url}/{name}"):
        fs, path = _place(url)
        return fs.cat_file(f"{path}/{name}")


def _place(url: str) -> tuple[Any, str]:
    """Return the filesystem of `url` and the path in it."""
    fs, path = open_url(url)
    # fsspec takes file:// paths literally; Path.as_uri() writes %20 for a space.
    if isinstance(fs, LocalFileSystem) and url.startswith("file:") and not fs.exists(path):
        path = unquote(path)
    return fs, path


def _local_rows(path: Path) -> Iterable[tuple[str, int, str]]:
    """Return name, size and mark of each file: its content's hash if all together are small.

    Otherwise the mark is its mtime and ctime. No program can set the ctime, while unpacking can
    give new content the old size and mtime.
    """
    files = filter(Path.is_file, walk_files(path)) if path.is_dir() else [path]
    states = [(file, file.stat()) for file in files]
    small = sum(max(state.st_size, _READ_LEAST) for _, state in states) <= _READ_AT_ONCE
    for file, state in states:
        name = file.relative_to(path) if path.is_dir() else file.name
        mark = _content(file) if small else ""
        yield str(name), state.st_size, mark or f"{state.st_mtime_ns} {state.st_ctime_ns}"


def _content(file: Path) -> str:
    try:
        return hash_file(file, hashlib.sha256())
    except OSError:  # reported when the file is needed
        return ""


def _listing(rows: Iterable[Any]) -> str:
    return hashlib.sha256(repr(sorted(rows)).encode("utf-8", "surrogatepass")).hexdigest()


def _version(info: Mapping[str, Any]) -> dict[str, str]:
    fields = {ours: str(info[key]) for key, ours in _IDENTITY.items() if info.get(key) is not None}
    return fields if info.get("size") is None else {**fields, "size": str(info["size"])}


def _open_file(url: str, offset: int, version: Mapping[str, str]) -> Stream:
    fs, path = _place(url)
    fs.invalidate_cache(path)
    info = fs.info(path)
    if info["type"] == "directory":
        raise StorageError(f"{redact(url)} is a folder", "name one file in it")
    current, total = _version(info), info.get("size")
    start = offset if agrees(version, current) and offset <= (total or 0) else 0
    handle = fs.open(path, "rb", block_size=_BLOCK, cache_type="readahead")
    handle.seek(start)
    return Stream(start, total, current, "", lambda: handle.read(_CHUNK), handle.close)


@contextmanager
def _naming(url: str) -> Generator[None, None, None]:
    """Turn every library's errors into our own, which name `url`."""
    shown = redact(url)
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError:
        raise MissingError(f"{shown} does not exist", "check the address") from None
    except Exception as error:
        if failure := explain(url, error):
            joint = "" if isinstance(error, ImportError) else "may not be read: "
            raise StorageError(f"{shown} {joint}{failure.reason}", failure.remedy) from None
        if isinstance(error, PermissionError):
            raise StorageError(
                f"{shown} may not be read", "check the credentials or rights"
            ) from None
        # Timeouts and lost connections are OSErrors.
        if isinstance(error, OSError) or _is_broken_body(error):
            raise TransientError(f"{shown} cannot be read: {reason_of(error)}") from None
        raise StorageError(f"{shown} cannot be read: {reason_of(error)}", "check the URL") from None


def _is_broken_body(error: Exception) -> bool:
    """Return whether a response broke off: s3fs passes on aiohttp's error, not an OSError."""
    aiohttp = sys.modules.get("aiohttp")
    return aiohttp is not None and isinstance(error, aiohttp.ClientPayloadError)
