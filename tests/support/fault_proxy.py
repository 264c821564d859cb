"""A proxy in front of a real HTTP server that lets answers fail as it is told to.

Each request whose method and path match a `Fault` takes one off its count; the others pass
through untouched, so what answers is always the real server.
"""

import http.client
import re
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.loopback import LoopbackServer, QuietHandler

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}
BUSY = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>busy</Message></Error>'
_CODES = {500: b"InternalError", 503: b"SlowDown", 403: b"AccessDenied"}


@dataclass
class Fault:
    """What goes wrong with the next answers; the default is nothing.

    Attributes:
        times: For how many requests.
        method: Of which method, as a regular expression.
        path: Of which path.
        status: Answer with this error and do not ask the server.
        lost: Ask the server, then close the connection without an answer.
        cut: Send only so many bytes of the body, then close the connection.
        delay: Seconds before the answer.
        flip: Flip the lowest bit of this byte of the body.
    """

    times: int = 1
    method: str = ".*"
    path: str = ".*"
    status: int = 0
    lost: bool = False
    cut: int | None = None
    delay: float = 0.0
    flip: int | None = None


@dataclass
class Seen:
    """One request as the proxy saw it."""

    method: str
    path: str
    fault: bool = field(default=False)


class FaultProxy(LoopbackServer):
    """Pass requests on to `upstream` until the `with` block ends."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        super().__init__(_Handler)

    def take(self, method: str, path: str) -> Fault:
        """Write a request down and return what goes wrong with it."""
        with self.lock:
            seen = Seen(method, path)
            self.seen.append(seen)
            for fault in self.faults:
                if (
                    fault.times > 0
                    and re.fullmatch(fault.method, method)
                    and re.search(fault.path, path)
                ):
                    fault.times -= 1
                    seen.fault = True
                    return fault
            return Fault()


class _Handler(QuietHandler):
    server: FaultProxy

    def _pass(self) -> None:
        body = self._body()
        fault = self.server.take(self.command, self.path)
        time.sleep(fault.delay)
        if fault.status:
            headers, data = {"Content-Type": "application/xml"}, BUSY % _CODES[fault.status]
            return self._answer(fault.status, headers, data, Fault())
        status, headers, data = self._ask(body)
        if fault.lost:
            self.close_connection = True
            return None
        return self._answer(status, headers, data, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815 - the server's names

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(pieces)
        if self.headers.get("Expect", "").lower() == "100-continue":
            pass  # answered by the base class
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = self.server.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in (_HOP | {"expect"})
        }
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
            if self.command == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length", "0")
            return answer.status, kept, data
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], data: bytes, fault: Fault) -> None:
        if fault.flip is not None and data:
            raw = bytearray(data)
            raw[fault.flip] ^= 1
            data = bytes(raw)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers and status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        if fault.cut is not None:
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: fault.cut])
