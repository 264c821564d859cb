"""HTTP as one streamed GET with Range and If-Range (RFC 9110, sections 13 and 14)."""

import atexit
import re
import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from storage.errors import MissingError, NoRangeError, StorageError, TransientError, redact
from storage.fetch.streams import Stream, agrees

if TYPE_CHECKING:
    import httpx

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_RETRY_STATUS = frozenset({408, 425, 429})


def is_http(url: str) -> bool:
    """Return whether this module handles `url`."""
    return url.partition("://")[0].lower() in {"http", "https"}


def open_http(url: str, offset: int, version: Mapping[str, str], timeout: float) -> Stream:
    """Open `url` at byte `offset`, or at 0 if it is no longer the object of `version`.

    Raises:
        StorageError: The server refused; `TransientError` if a retry may help.
        OSError: No connection, or silence for `timeout` seconds.
        ValueError: The URL or the server's certificate is not valid.
    """
    answer = _request(url, _range_headers(offset, version), timeout)
    current, start = _version(answer), _first_byte(answer)
    # A 416, another range than asked for or another version: the object changed, so start again.
    if offset and (answer.status_code == 416 or (start and start != offset)):
        answer.close()
        return open_http(url, 0, {}, timeout)
    if start and not agrees(version, current):
        answer.close()
        return open_http(url, 0, {}, timeout)
    packed = answer.headers.get("Content-Encoding", "identity")
    if start is None or (packed != "identity" and not url.endswith((".gz", ".tgz"))):
        answer.close()
        raise _refusal(url, answer) if start is None else _packed(url, packed)
    total = int(current["size"]) if "size" in current else None
    return _stream(answer, start, total, current)


def open_range(
    url: str, first: int, last: int, version: Mapping[str, str], timeout: float
) -> Stream:
    """Open the bytes from `first` to `last`, both included, of the object of `version`.

    Args:
        url: The object.
        first: First byte wanted.
        last: Last byte wanted.
        version: `Stream.version` that the caller already knows; empty in the first call.
        timeout: Seconds of silence that count as a failure.

    Raises:
        NoRangeError: The server answered the first call with something other than a range.
        StorageError: The object is no longer that of `version`, or as `open_http`.
        OSError, ValueError: As `open_http`.
    """
    headers = {"Range": f"bytes={first}-{last}", **_validator(version)}
    answer = _request(url, headers, timeout)
    current = _version(answer)
    if answer.status_code == 206 and _first_byte(answer) == first and agrees(version, current):
        total = int(current["size"]) if "size" in current else None
        return _stream(answer, first, total, current)
    answer.close()
    if not version:
        raise NoRangeError(
            f"{redact(url)} does not support Range (HTTP {answer.status_code})", "fetch it whole"
        )
    page = answer.headers.get("Content-Type", "").startswith("text/html")
    if answer.status_code != 416 and (page or agrees(version, current)):
        raise TransientError(f"{redact(url)} gave another range than was asked for")
    raise StorageError(
        f"{redact(url)} changed while it was read", "run again: files that still match are kept"
    )


def probe_http(url: str, timeout: float = 60.0) -> dict[str, str]:
    """Return ETag, Last-Modified and size of `url`, as far as the server reports them.

    It asks for one byte: servers and signed addresses answer a range more reliably than HEAD.

    Raises:
        StorageError, OSError, ValueError: As `open_http`.
    """
    answer = _request(url, {"Range": "bytes=0-0"}, timeout)
    answer.close()
    return _version(answer)


def _stream(
    answer: "httpx.Response", start: int, total: int | None, version: dict[str, str]
) -> Stream:
    # Raw, since a .tar.gz served with Content-Encoding: gzip has to arrive as it is.
    pieces = answer.iter_raw()

    def read() -> bytes:
        with _standard_errors():
            return next(pieces, b"")

    return Stream(start, total, version, answer.headers.get("Content-Type", ""), read, answer.close)


def _range_headers(offset: int, version: Mapping[str, str]) -> dict[str, str]:
    if not offset:
        return {}
    return {"Range": f"bytes={offset}-", **_validator(version)}


def _validator(version: Mapping[str, str]) -> dict[str, str]:
    etag = version.get("etag", "")
    # If-Range takes strong validators only; without one the version is compared afterwards.
    validator = etag if etag.startswith('"') else version.get("modified", "")
    return {"If-Range": validator} if validator else {}


@cache
def _client() -> "httpx.Client":
    """Return the process's pool of connections; threads share it."""
    import httpx  # slow to import, and only HTTP needs it

    limits = httpx.Limits(max_connections=None)
    client = httpx.Client(
        follow_redirects=True, limits=limits, headers={"Accept-Encoding": "identity"}
    )
    atexit.register(client.close)
    return client


def _request(url: str, headers: Mapping[str, str], timeout: float) -> "httpx.Response":
    with _standard_errors():
        client = _client()
        request = client.build_request("GET", url, headers=headers, timeout=timeout)
        answer = client.send(request, stream=True)
    if answer.status_code >= 400 and answer.status_code != 416:
        answer.close()
        raise _refusal(url, answer)
    return answer


@contextmanager
def _standard_errors() -> Generator[None]:
    """Turn httpx's errors into ValueError if permanent, ConnectionError if temporary."""
    import httpx

    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
        raise ValueError(type(error).__name__) from None
    except httpx.HTTPError as error:
        if reason := _certificate_fault(error):
            host = error.request.url.host
            raise ValueError(f"the certificate is not valid for {host}: {reason}") from None
        raise ConnectionError(f"{type(error).__name__}: {error}") from None


def _certificate_fault(error: BaseException | None) -> str:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return "" if error is None else error.verify_message


def _first_byte(answer: "httpx.Response") -> int | None:
    if answer.status_code == 200:
        return 0
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return int(match[1]) if answer.status_code == 206 and match else None


def _version(answer: "httpx.Response") -> dict[str, str]:
    headers = answer.headers
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    length = match[2] if match else headers.get("Content-Length", "") * (answer.status_code == 200)
    named = {
        "etag": headers.get("ETag", ""),
        "modified": headers.get("Last-Modified", ""),
        "size": length if length.isdecimal() else "",
    }
    return {field: value for field, value in named.items() if value}


def _packed(url: str, how: str) -> StorageError:
    return StorageError(
        f"{redact(url)} arrives compressed as {how} although it was requested uncompressed",
        "use another mirror, or download the file by hand and give its local path",
    )


def _refusal(url: str, answer: "httpx.Response") -> StorageError:
    message = f"{redact(url)} answered HTTP {answer.status_code} {answer.reason_phrase}"
    if answer.status_code in _RETRY_STATUS or answer.status_code >= 500:
        error = TransientError(message)
        wait = answer.headers.get("Retry-After", "")
        error.pause = float(wait) if wait.isdecimal() else 0.0
        return error
    if answer.status_code in {401, 403}:
        return StorageError(message, "check the credentials, or whether a signed URL has expired")
    kind = MissingError if answer.status_code in {404, 410} else StorageError
    return kind(message, "Check the address in a browser")
