"""A real HTTP server on loopback that serves bytes with Range, and fails as it is told to.

Every GET of a path takes the next `Fault` of that path's list; when the list is used up it answers
as a good server does. What it was asked for and how much it sent is written down.
"""

import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import md5

from tests.support.loopback import LoopbackServer, QuietHandler

PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer; the default is nothing.

    Attributes:
        status: Answer with this error status and no file.
        retry_after: The Retry-After header of that answer.
        drop_after: Close the connection after so many bytes of the body.
        stall_after: Send so many bytes of the body, then nothing for `stall` seconds.
        stall: See above.
        claim: The Content-Length that the header states, whatever is sent; -1 for no header.
        page: Send a web page with status 200.
        ignore_range: Send the whole file with status 200 although a range was asked for.
        anonymous: Send neither ETag nor Last-Modified.
        pace: Bytes per second, 0 for as fast as it goes.
        packed: Content-Encoding header; the body is sent as it is.
        redirect: Answer 302 with this address.
    """

    status: int = 0
    retry_after: str = ""
    drop_after: int | None = None
    stall_after: int | None = None
    stall: float = 5.0
    claim: int | None = None
    page: bool = False
    ignore_range: bool = False
    anonymous: bool = False
    pace: int = 0
    packed: str = ""
    redirect: str = ""


@dataclass
class Request:
    """One request as the server saw it: the range's first byte, and body bytes written."""

    method: str
    path: str
    headers: dict[str, str]
    start: int = 0
    status: int = 0
    sent: int = 0


class FaultServer(LoopbackServer):
    """Serve files from memory until the `with` block ends.

    Attributes:
        requests: All requests so far, in order of arrival.
        always: The fault of every request that has none of its own.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.always = Fault()
        self._files: dict[str, tuple[bytes, str]] = {}
        self._faults: dict[str, list[Fault]] = defaultdict(list)
        self._lock = threading.Lock()
        super().__init__(_Handler)

    def serve(self, path: str, body: bytes, *faults: Fault, etag: str | None = None) -> str:
        """Offer `body` at `path`, queue faults for its next requests, and return its URL."""
        with self._lock:
            self._files[path] = (body, f'"{md5(body).hexdigest()}"' if etag is None else etag)
            self._faults[path].extend(faults)
        return f"{self.url}{path}"

    def sent(self, path: str | None = None) -> int:
        """Return how many body bytes were written, for one path or for all."""
        return sum(seen.sent for seen in self.requests if path in {None, seen.path})

    def starts(self, path: str) -> list[int]:
        """Return the first byte of each request for `path`, in order."""
        return [seen.start for seen in self.requests if seen.path == path]

    def take(self, seen: Request) -> tuple[tuple[bytes, str] | None, Fault]:
        """Write a request down; return the file (body, ETag) and what goes wrong with it."""
        with self._lock:
            self.requests.append(seen)
            queue = self._faults[seen.path]
            fault = queue.pop(0) if queue and seen.method == "GET" else self.always
            return self._files.get(seen.path), fault


def _span(header: str, size: int) -> tuple[int, int] | None:
    """Return first and last byte of a Range header, None if there is no single range in it."""
    found = _RANGE.fullmatch(header)
    if found is None or found.groups() == ("", ""):
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size - 1
    return int(found[1]), min(int(found[2] or size - 1), size - 1)


class _Handler(QuietHandler):
    server: FaultServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        seen = Request(self.command, self.path.partition("?")[0], dict(self.headers))
        file, fault = self.server.take(seen)
        if fault.redirect or fault.status or file is None:
            status = 302 if fault.redirect else fault.status or 404
            return self._refuse(seen, status, fault)
        if fault.page:
            return self._send(seen, 200, PAGE, {"Content-Type": "text/html"}, fault)
        return self._send_file(seen, *file, fault)

    def _refuse(self, seen: Request, status: int, fault: Fault) -> None:
        given = {"Retry-After": fault.retry_after, "Location": fault.redirect}
        extra = {name: value for name, value in given.items() if value}
        self._send(seen, status, b"no", extra, Fault())

    def _send_file(self, seen: Request, body: bytes, etag: str, fault: Fault) -> None:
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if fault.packed:
            headers["Content-Encoding"] = fault.packed
        if etag and not fault.anonymous:
            headers["ETag"] = etag
        span = _span(self.headers.get("Range", ""), len(body))
        changed = self.headers.get("If-Range", etag) != etag
        if span is None or changed or fault.ignore_range:
            return self._send(seen, 200, body, headers, fault)
        first, last = span
        seen.start = first
        if first >= len(body):
            headers["Content-Range"] = f"bytes */{len(body)}"
            return self._send(seen, 416, b"", headers, fault)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        return self._send(seen, 206, body[first : last + 1], headers, fault)

    def _send(
        self, seen: Request, status: int, body: bytes, headers: dict[str, str], fault: Fault
    ) -> None:
        seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        length = len(body) if fault.claim is None else fault.claim
        if length >= 0:
            self.send_header("Content-Length", str(length))
        # A body that is not as long as stated leaves the connection in no usable state.
        if length != len(body) or fault.drop_after is not None:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for piece in _pieces(body[: fault.drop_after], fault, self.server.stopping):
                self.wfile.write(piece)
                seen.sent += len(piece)
        except OSError:
            self.close_connection = True  # the client went away


def _pieces(body: bytes, fault: Fault, stopping: threading.Event) -> Iterator[bytes]:
    edge = len(body) if fault.stall_after is None else fault.stall_after
    for start in range(0, edge, _CHUNK):
        yield body[start : min(start + _CHUNK, edge)]
        if fault.pace:
            time.sleep(_CHUNK / fault.pace)
    if edge < len(body):
        stopping.wait(fault.stall)
        yield body[edge:]
