"""What the process that speaks HTTP and the one that owns the model send each other.

Both are one program's, joined by a pipe that nobody else can open, so messages are pickled.
"""

import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from flows.serve.limits import ServeLimits
from model.generation_configs import GenerationConfig
from model.shrink import Pixels, Shrink

MISSING = -1  # instead of a token id: the pixels of a request's images are to be sent, too
News = tuple[int, int | str | None]
"""A request's number, and its next token, None at its end, or why it cannot be answered."""


@dataclass(frozen=True)
class Opening:
    """What the HTTP process must know before it answers.

    Attributes:
        folder: The bundle.
        prefix: Tokens of an image, the separator included.
        max_positions: Positions that the language model was made for.
        shrink: Prepares images.
        key: The key that clients send, "" where none is asked for.
        hosts: Hosts from which images may be fetched.
        limits: What requests may ask.
        local: Whether it answers by a name of loopback only.
    """

    folder: Path
    prefix: int
    max_positions: float
    shrink: Shrink
    key: str
    hosts: Collection[str]
    limits: ServeLimits
    local: bool


class Ask(NamedTuple):
    """A text that is to be written.

    Attributes:
        number: The request's, for what is sent back.
        images: SHA-256 of each image's file, and its pixels, None where they were sent before.
        prompt: Token ids after the first image.
        longest: Tokens after which it is cut.
        decoding: Greedy or nucleus sampling.
    """

    number: int
    images: Sequence[tuple[bytes, Pixels | None]]
    prompt: Sequence[int]
    longest: int
    decoding: GenerationConfig


class Leave(NamedTuple):
    """Nobody waits for a request's answer any more.

    Attributes:
        number: The request's.
    """

    number: int


class Outbox:
    """Tokens of all answers, sent together after each step of the model; used by several threads.

    Args:
        connection: To the HTTP process.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._news: list[News] = []

    def put(self, news: News) -> None:
        """Keep something for the next `flush`."""
        with self._lock:
            self._news.append(news)

    def flush(self) -> None:
        """Send what there is."""
        with self._lock:
            if not self._news:
                return
            with suppress(
                ConnectionError
            ):  # that the process is gone, whoever receives from it sees
                self._connection.send(self._news)
            self._news = []
