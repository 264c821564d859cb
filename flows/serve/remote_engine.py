"""The engine as the HTTP process sees it: requests go over a pipe, tokens come back."""

import asyncio
import hashlib
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import Connection

from cachetools import LRUCache

from flows.inference.answer import Answer
from flows.inference.limits import EngineLimits
from flows.serve.link import MISSING, Ask, Leave, News
from flows.serve.served import Served
from model.generation_configs import GenerationConfig
from model.shrink import Pixels

_GONE = "the process that owns the model has ended"
_KNOWN = 100_000  # digests of images that were sent


class FullError(Exception):
    """Too many requests wait."""


class GoneError(Exception):
    """The process that owns the model has ended."""


@dataclass(frozen=True)
class Image:
    """An image of a request.

    Attributes:
        data: The file's content.
        digest: Its SHA-256.
        pixels: What the encoder takes; None where they were sent before.
    """

    data: bytes
    digest: bytes
    pixels: Pixels | None


@dataclass(frozen=True)
class Order:
    """A text that is to be written.

    Attributes:
        images: What it is about, from `RemoteEngine.prepare`.
        prompt: Token ids after the first image.
        longest: Tokens after which it is cut.
        decoding: Greedy or nucleus sampling.
        answer: Gets its tokens, in the event loop.
    """

    images: Sequence[Image]
    prompt: Sequence[int]
    longest: int
    decoding: GenerationConfig
    answer: Answer


class RemoteEngine:
    """Sends requests to the process that owns the model.

    Args:
        connection: To that process.
        assistant: What is known of the assistant here.
        limits: How much is taken on.
        gone: Called when that process has ended.
    """

    def __init__(
        self,
        connection: Connection,
        assistant: Served,
        limits: EngineLimits,
        gone: Callable[[], None],
    ) -> None:
        self._connection, self._assistant, self._gone = connection, assistant, gone
        self._at_once, self._most = limits.at_once, limits.at_once + limits.waiting
        self._numbers, self._orders = count(), dict[int, Order]()
        self._known: LRUCache[bytes, bool] = LRUCache(_KNOWN)
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._is_lost = False

    @property
    def active(self) -> int:
        """Answers that are being written."""
        return min(len(self._orders), self._at_once)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return max(len(self._orders) - self._at_once, 0)

    @contextmanager
    def running(self) -> Generator[None]:
        """Take what comes back, in the running event loop, until the block ends."""
        # Not by the loop's own `add_reader`: uvloop makes what it watches non-blocking, and a
        # message that is longer than the pipe has room for would then be cut.
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), name="tokens", daemon=True).start()
        yield

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody waits any more
            try:
                while True:
                    loop.call_soon_threadsafe(self._receive, self._connection.recv())
            except (EOFError, OSError):
                loop.call_soon_threadsafe(self._lose)

    def prepare(self, data: bytes) -> Image:
        """Return an image file, decoded unless it was sent before; safe for several threads.

        Raises:
            BadImageError: The image cannot be used.
        """
        known = self.recall(data)
        if known is not None:
            return known
        return Image(data, hashlib.sha256(data).digest(), self._assistant.pixels(data))

    def recall(self, data: bytes) -> Image | None:
        """Return an image that was sent before, None of any other; safe for several threads."""
        digest = hashlib.sha256(data).digest()
        with self._lock:
            return Image(data, digest, None) if self._known.get(digest) else None

    def submit(self, order: Order) -> Callable[[], None]:
        """Let an answer be written, and return what says that nobody waits for it any more.

        Raises:
            FullError: Too many wait already.
            GoneError: Nobody would write it.
        """
        with self._lock:
            if self._is_lost:
                raise GoneError
            if len(self._orders) >= self._most:
                raise FullError
            number = next(self._numbers)
            self._orders[number] = order
        self._ask(number, order)
        return partial(self._leave, number)

    def _ask(self, number: int, order: Order) -> None:
        images = [(image.digest, image.pixels) for image in order.images]
        self._send(Ask(number, images, order.prompt, order.longest, order.decoding))
        with self._lock:
            self._known.update(dict.fromkeys((image.digest for image in order.images), True))

    def _ask_again(self, number: int, order: Order) -> None:
        """Send a request whose images the model's process has forgotten, in a thread."""
        with self._lock:
            for image in order.images:
                self._known.pop(image.digest, None)
        images = [self.prepare(image.data) for image in order.images]
        self._ask(number, Order(images, order.prompt, order.longest, order.decoding, order.answer))

    def _send(self, message: Ask | Leave) -> None:
        # `_listen` sees that nobody is there, and those who wait are told.
        with self._sending, suppress(ConnectionError):
            self._connection.send(message)

    def _leave(self, number: int) -> None:
        with self._lock:
            order = self._orders.pop(number, None)
        if order is not None:
            order.answer.leave()
            self._send(Leave(number))

    def _receive(self, batch: Sequence[News]) -> None:
        for news in batch:
            self._take(news)

    def _lose(self) -> None:
        with self._lock:
            self._is_lost = True
        for number in list(self._orders):
            self._take((number, _GONE))
        self._gone()

    def _take(self, news: News) -> None:
        number, token = news
        order = self._orders.get(number)
        if order is None:
            return  # its client has left
        if token == MISSING:
            loop = asyncio.get_running_loop()
            loop.run_in_executor(None, self._ask_again, number, order)
        elif isinstance(token, str):
            self._forget(number)
            order.answer.fail(token)
        elif not order.answer.take(token):
            if token is not None:  # a stop was written: what follows is not waited for
                order.answer.take(None)
                self._send(Leave(number))
            self._forget(number)

    def _forget(self, number: int) -> None:
        with self._lock:
            self._orders.pop(number, None)
