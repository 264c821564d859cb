"""A lean HTTP client of `phivision serve`: many connections in one thread, requests made before.

It takes about a tenth of a millisecond an answer, where OpenAI's client takes several, so that it
is the server that is measured even where both share two cores.
"""

import json
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

_END = b"\r\n\r\n"


@dataclass
class Timed:
    """One answer.

    Attributes:
        status: HTTP status.
        body: Its body, still in chunks where it came so.
        first: Seconds to the first byte of text; to the whole body where it is not streamed.
        whole: Seconds to the end.
    """

    status: int
    body: bytes
    first: float
    whole: float


@dataclass
class _Connection:
    """One client, which has one request at work at a time."""

    socket: socket.socket
    number: int = -1
    begun: float = 0.0
    first: float = 0.0
    parts: bytearray = field(default_factory=bytearray)


def post(address: str, path: str, body: dict[str, Any]) -> bytes:
    """Return a request as it is sent.

    Args:
        address: Host and port.
        path: Path of the URL.
        body: What is sent as JSON.
    """
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def load(address: str, requests: Sequence[bytes], clients: int) -> list[Timed]:
    """Send all requests by so many clients, each of which waits for its answer; in their order.

    Args:
        address: Host and port.
        requests: What to send, from `post`.
        clients: Connections side by side.
    """
    host, _, port = address.rpartition(":")
    found: list[Timed | None] = [None] * len(requests)
    coming = iter(range(len(requests)))
    with selectors.DefaultSelector() as selector:
        for _ in range(min(clients, len(requests))):
            connection = _Connection(socket.create_connection((host, int(port))))
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            _send_next(connection, requests, coming)
        while selector.get_map():
            for key, _ in selector.select():
                connection = key.data
                timed = _read(connection)
                if timed is None:
                    continue
                found[connection.number] = timed
                if not _send_next(connection, requests, coming):
                    selector.unregister(connection.socket)
                    connection.socket.close()
    return [each for each in found if each is not None]


def _send_next(connection: _Connection, requests: Sequence[bytes], coming: Iterator[int]) -> bool:
    connection.number = next(coming, -1)
    if connection.number < 0:
        return False
    connection.parts.clear()
    connection.first, connection.begun = 0.0, time.monotonic()
    connection.socket.sendall(requests[connection.number])
    return True


def _read(connection: _Connection) -> Timed | None:
    """Return the answer if all of it is there."""
    received = connection.socket.recv(2**18)
    if not received:
        raise ConnectionError("the server closed the connection")
    parts = connection.parts
    parts += received
    if not connection.first and b'"content": "' in received.replace(b'"content": ""', b""):
        connection.first = time.monotonic() - connection.begun
    head, _, body = parts.partition(_END)
    if not _is_whole(bytes(head).lower(), body):
        return None
    whole = time.monotonic() - connection.begun
    return Timed(int(head[9:12]), bytes(body), connection.first or whole, whole)


def _is_whole(head: bytes, body: bytearray) -> bool:
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    _, stated, rest = head.partition(b"content-length: ")
    return bool(stated) and len(body) >= int(rest.split(b"\r\n", 1)[0])
