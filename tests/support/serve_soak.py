"""Good requests to `phivision serve` among broken ones; every good answer is checked.

Clients in threads send what a seed says: whole and streamed questions, slow readers and slow
writers, and faults: connections that drop while the question is sent or the answer comes, bodies
that are malformed or too large. A fault must be refused or end; it must never change the answer of
another client.
"""

import base64
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.support.serve_load import post

# How many of 100 requests are of a kind; "large" sends 33 MB.
MIX = {
    "whole": 38,
    "streamed": 32,
    "slow reader": 4,
    "slow writer": 4,
    "dropped question": 6,
    "dropped answer": 5,
    "dropped stream": 5,
    "malformed": 5,
    "large": 1,
}
_PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Question:
    """A question with the answer that it gets alone."""

    image: bytes
    text: str
    answer: str

    def body(self, *, stream: bool) -> dict[str, Any]:
        """Return the body of a request."""
        data = base64.b64encode(self.image).decode()
        url = {"url": f"data:image/png;base64,{data}"}
        content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": self.text}]
        return {"messages": [{"role": "user", "content": content}], "stream": stream}


def soak(place: str, questions: Sequence[Question], count: int, seed: int) -> Counter[str]:
    """Send requests by 16 clients and return how many there were of each kind.

    Args:
        place: Host and port of the server.
        questions: What is asked.
        count: How many requests.
        seed: Of the order of kinds and questions.

    Raises:
        AssertionError: An answer was lost or wrong, or a fault was not refused.
    """
    drawn = random.Random(seed)
    kinds = drawn.choices(list(MIX), list(MIX.values()), k=count)
    asked = drawn.choices(questions, k=count)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda kind, question: _SEND[kind](place, question), kinds, asked))
    return Counter(kinds)


def _connected(place: str) -> socket.socket:
    host, _, port = place.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=120)


def _received(connection: socket.socket, size: int = 2**16, pause: float = 0.0) -> bytes:
    """Return all that comes until the server closes."""
    found = bytearray()
    while piece := connection.recv(size):
        found += piece
        time.sleep(pause)
    return bytes(found)


def _request(place: str, body: dict[str, Any]) -> bytes:
    """Return a request after which the server closes the connection."""
    return post(place, _PATH, body).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


def _said(received: bytes) -> str:
    """Return the text of an answer, streamed or whole."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    if b"chunked" not in head.lower():
        return json.loads(body)["choices"][0]["message"]["content"]
    events = [line for line in body.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1] == b"data: [DONE]", events[-1]
    parts = [json.loads(event[6:])["choices"][0]["delta"] for event in events[:-1]]
    return "".join(part.get("content", "") for part in parts)


def _ask(place: str, question: Question, *, stream: bool, size: int, pause: float) -> None:
    with _connected(place) as connection:
        connection.sendall(_request(place, question.body(stream=stream)))
        assert _said(_received(connection, size, pause)) == question.answer


def _whole(place: str, question: Question) -> None:
    _ask(place, question, stream=False, size=2**16, pause=0)


def _streamed(place: str, question: Question) -> None:
    _ask(place, question, stream=True, size=2**16, pause=0)


def _slow_reader(place: str, question: Question) -> None:
    _ask(place, question, stream=True, size=40, pause=0.002)


def _slow_writer(place: str, question: Question) -> None:
    request = _request(place, question.body(stream=False))
    with _connected(place) as connection:
        for start in range(0, len(request), 500):
            connection.sendall(request[start : start + 500])
            time.sleep(0.005)
        assert _said(_received(connection)) == question.answer


def _dropped_question(place: str, question: Question) -> None:
    request = _request(place, question.body(stream=True))
    with _connected(place) as connection:
        connection.sendall(request[: len(request) * 2 // 3])


def _dropped_answer(place: str, question: Question) -> None:
    with _connected(place) as connection:
        connection.sendall(_request(place, question.body(stream=False)))


def _dropped_stream(place: str, question: Question) -> None:
    with _connected(place) as connection:
        connection.sendall(_request(place, question.body(stream=True)))
        connection.recv(20)


def _malformed(place: str, question: Question) -> None:
    good = question.body(stream=False)
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    wrong: list[dict[str, Any]] = [
        {**good, "messages": "?"},
        {**good, "max_tokens": -1},
        {**good, "n": 3},
        {**good, "messages": [{"role": "user", "content": [url]}]},
        {**good, "model": "another"},
    ]
    requests = [*(_request(place, body) for body in wrong), b"GET\r\n\r\n"]
    with _connected(place) as connection:
        connection.sendall(requests[len(question.text + question.answer) % len(requests)])
        assert _received(connection).startswith(b"HTTP/1.1 4")


def _large(place: str, question: Question) -> None:
    size = 33 * 2**20
    head = f"POST {_PATH} HTTP/1.1\r\nHost: {place}\r\nContent-Length: {size}\r\n"
    # The server closes the connection while the rest is still being sent, or after it.
    with _connected(place) as connection, suppress(ConnectionError):
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        for _ in range(33):
            connection.sendall(question.image[:1] * 2**20)
        assert _received(connection).startswith(b"HTTP/1.1 413")


_SEND: dict[str, Callable[[str, Question], None]] = {
    "whole": _whole,
    "streamed": _streamed,
    "slow reader": _slow_reader,
    "slow writer": _slow_writer,
    "dropped question": _dropped_question,
    "dropped answer": _dropped_answer,
    "dropped stream": _dropped_stream,
    "malformed": _malformed,
    "large": _large,
}
