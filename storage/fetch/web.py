"""HTTP as one streamed GET with Range and If-Range (RFC 9110, sections 13 and 14).

The connections are those of fsspec's HTTP filesystem, which pools them; its own file objects are
not used, because they neither send If-Range nor show the status. aiohttp forgets what it has
buffered when a connection breaks, so a task on fsspec's thread takes every piece as it comes: on a
link that drops every few hundred kilobytes nothing would ever arrive otherwise.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
from fsspec.asyn import get_loop, sync

from storage.errors import MissingError, NoRangeError, StorageError, TransientError, redact
from storage.fetch.streams import Stream, agrees

_PIECES = 64  # pieces of up to 256 KiB that may wait for a slow disk
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_RETRY_STATUS = frozenset({408, 425, 429})


def is_http(url: str) -> bool:
    """Return whether `url` is spoken to by this module."""
    return url.partition("://")[0].lower() in {"http", "https"}


def open_http(url: str, offset: int, version: Mapping[str, str], timeout: float) -> Stream:
    """Open `url` at byte `offset`, or at 0 if it is no longer the object of `version`.

    Raises:
        StorageError: The server refused; `TransientError` if it may think otherwise later.
        OSError: No connection, or silence for `timeout` seconds.
        ValueError: The URL or the server's certificate is not valid.
    """
    answer = _request(url, _range_headers(offset, version), timeout)
    found, start = _version(answer), _first_byte(answer)
    # A 416, another range than asked for or another version: the object changed, so start again.
    if offset and (answer.status == 416 or (start and start != offset)):
        answer.close()
        return open_http(url, 0, {}, timeout)
    if start and not agrees(version, found):
        answer.close()
        return open_http(url, 0, {}, timeout)
    packed = answer.headers.get("Content-Encoding", "identity")
    if start is None or (packed != "identity" and not url.endswith((".gz", ".tgz"))):
        answer.close()
        raise _refusal(url, answer) if start is None else _packed(url, packed)
    total = int(found["size"]) if "size" in found else None
    kind = answer.headers.get("Content-Type", "")
    return Stream(start, total, found, kind, answer.read, answer.close)


def open_range(
    url: str, first: int, last: int, version: Mapping[str, str], timeout: float
) -> Stream:
    """Open the bytes from `first` to `last`, both included, of the object of `version`.

    Args:
        url: The object.
        first: First byte wanted.
        last: Last byte wanted.
        version: `Stream.version` of what the caller already knows of it; empty in the first call.
        timeout: Seconds of silence that count as a failure.

    Raises:
        NoRangeError: The server answered the first call with something else than a range.
        StorageError: The object is no longer that of `version`, or as `open_http`.
        OSError, ValueError: As `open_http`.
    """
    headers = {"Range": f"bytes={first}-{last}", **_validator(version)}
    answer = _request(url, headers, timeout)
    found = _version(answer)
    if answer.status == 206 and _first_byte(answer) == first and agrees(version, found):
        total = int(found["size"]) if "size" in found else None
        kind = answer.headers.get("Content-Type", "")
        return Stream(first, total, found, kind, answer.read, answer.close)
    answer.close()
    if not version:
        raise NoRangeError(
            f"{redact(url)} answers no Range (HTTP {answer.status})", "Fetch it whole"
        )
    page = answer.headers.get("Content-Type", "").startswith("text/html")
    if answer.status != 416 and (page or agrees(version, found)):
        raise TransientError(f"{redact(url)} gave another range than was asked for")
    raise StorageError(
        f"{redact(url)} changed while it was read", "Run again: what fits the new one is kept"
    )


def probe_http(url: str, timeout: float = 60.0) -> dict[str, str]:
    """Return ETag, Last-Modified and size of `url`, as far as the server tells.

    It asks for one byte: servers and signed addresses answer a range more reliably than HEAD.

    Raises:
        StorageError, OSError, ValueError: As `open_http`.
    """
    answer = _request(url, {"Range": "bytes=0-0"}, timeout)
    answer.close()
    return _version(answer)


class _Answer:
    """A response whose body is read from another thread than fsspec's.

    Attributes:
        status: HTTP status.
        headers: Case-insensitive mapping.
    """

    def __init__(self, response: Any) -> None:
        self.status, self.reason, self.headers = response.status, response.reason, response.headers
        self._response = response
        self._pieces: asyncio.Queue[bytes | Exception] = asyncio.Queue(_PIECES)
        self._pump = asyncio.create_task(self._take())

    async def _take(self) -> None:
        try:
            async for piece in self._response.content.iter_any():
                await self._pieces.put(piece)
            await self._pieces.put(b"")
        except Exception as error:  # it is raised in the thread that reads
            await self._pieces.put(error)

    def read(self) -> bytes:
        """Return the next piece, b"" at the end."""
        return _wait(self._next)

    async def _next(self) -> bytes:
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        """Drop the connection unless the whole body was read."""

        async def close() -> None:
            self._pump.cancel()
            self._response.close()

        _wait(close)


def _range_headers(offset: int, version: Mapping[str, str]) -> dict[str, str]:
    if not offset:
        return {}
    return {"Range": f"bytes={offset}-", **_validator(version)}


def _validator(version: Mapping[str, str]) -> dict[str, str]:
    etag = version.get("etag", "")
    # If-Range takes strong validators only; without one the version is compared afterwards.
    validator = etag if etag.startswith('"') else version.get("modified", "")
    return {"If-Range": validator} if validator else {}


def _request(url: str, headers: dict[str, str], timeout: float) -> _Answer:
    import aiohttp  # costs half a second, and only HTTP needs it

    options = {
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout),
        # A .tar.gz served with Content-Encoding: gzip has to arrive as it is.
        "auto_decompress": False,
        "trust_env": True,
    }
    fs = fsspec.filesystem("http", client_kwargs=options)

    async def get() -> _Answer:
        session = await fs.set_session()
        wanted = {"Accept-Encoding": "identity", **headers}
        return _Answer(await session.get(fs.encode_url(url), headers=wanted))

    answer = _wait(get)
    if answer.status >= 400 and answer.status != 416:
        answer.close()
        raise _refusal(url, answer)
    return answer


def _wait(function: Callable[..., Any]) -> Any:
    """Run a coroutine on fsspec's thread."""
    import aiohttp

    try:
        return sync(get_loop(), function)
    except aiohttp.ClientError as error:
        raise _standard(error) from None


def _standard(error: Exception) -> Exception:
    """Return aiohttp's error as ValueError where it is final, ConnectionError where it may pass."""
    import aiohttp

    name = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return ValueError(f"the certificate is not valid for {error.host}")
    if isinstance(error, aiohttp.InvalidURL | aiohttp.TooManyRedirects):
        return ValueError(name)
    # A response error's text holds raw bytes of the answer, and an address of its own.
    told = error.__cause__ or "" if isinstance(error, aiohttp.ClientResponseError) else error
    return ConnectionError(f"{name}: {told}") if isinstance(error, aiohttp.ClientError) else error


def _first_byte(answer: _Answer) -> int | None:
    if answer.status == 200:
        return 0
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return int(found[1]) if answer.status == 206 and found else None


def _version(answer: _Answer) -> dict[str, str]:
    headers = answer.headers
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    length = found[2] if found else headers.get("Content-Length", "") * (answer.status == 200)
    named = {
        "etag": headers.get("ETag", ""),
        "modified": headers.get("Last-Modified", ""),
        "size": length if length.isdecimal() else "",
    }
    return {field: value for field, value in named.items() if value}


def _packed(url: str, how: str) -> StorageError:
    return StorageError(
        f"{redact(url)} arrives packed as {how} although it was asked for unpacked",
        "Use another mirror, or download the file by hand and give its local path",
    )


def _refusal(url: str, answer: _Answer) -> StorageError:
    message = f"{redact(url)} answered HTTP {answer.status} {answer.reason}"
    if answer.status in _RETRY_STATUS or answer.status >= 500:
        error = TransientError(message)
        wait = answer.headers.get("Retry-After", "")
        error.pause = float(wait) if wait.isdecimal() else 0.0
        return error
    if answer.status in {401, 403}:
        return StorageError(message, "Check the credentials, or whether a signed URL has expired")
    kind = MissingError if answer.status in {404, 410} else StorageError
    return kind(message, "Check the address in a browser")
