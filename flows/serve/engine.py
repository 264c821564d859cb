"""The thread that embeds images and writes all answers; a bounded queue is before it.

Requests that wait are taken together, as many as may join: one forward pass embeds their images,
one reads their prompts, then they are written side by side with those that have begun before.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch

from flows.serve.answer import Answer
from flows.serve.embeddings import Embeddings, Shown
from model.assistant import Assistant
from model.batching import Batcher, TextRequest
from model.errors import ModelError

_LOG = logging.getLogger(__name__)
_STOPPING = "the server is stopping"


class FullError(Exception):
    """Too many requests wait."""


class Waiting(NamedTuple):
    """A request that waits.

    Attributes:
        images: What it is about, from `Engine.embeddings`.
        write: Makes the request of their embeddings [image, patch, vision].
        answer: Gets the text.
    """

    images: Sequence[Shown]
    write: Callable[[torch.Tensor], TextRequest]
    answer: Answer


class Engine:
    """Writes answers side by side.

    Args:
        assistant: Whose model writes.
        at_once: Texts side by side.
        waiting: Requests that may wait behind them.
        kept_bytes: Embeddings of images that are kept, at most.
    """

    def __init__(self, assistant: Assistant, at_once: int, waiting: int, kept_bytes: int) -> None:
        self.embeddings = Embeddings(assistant, kept_bytes)
        self._made = partial(Batcher, assistant.vlm, assistant.template.eos_id, at_once)
        self._batcher = self._made()
        self._writing: list[Answer] = []
        self._most = waiting
        self._queue: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def active(self) -> int:
        """Answers that are being written."""
        return self._batcher.active

    @contextmanager
    def running(self) -> Generator[None]:
        """Write in a thread until the block ends."""
        thread = threading.Thread(target=self._run, name="writing", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify()
            thread.join()

    def submit(self, request: Waiting) -> None:
        """Let an answer be written.

        Raises:
            FullError: Too many wait already.
        """
        with self._changed:
            if self._closed:
                request.answer.fail(_STOPPING)
                return
            # Those that can join at once do not count as waiting.
            if len(self._queue) >= self._most + max(self._batcher.free, 0):
                raise FullError
            self._queue.append(request)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._batcher.active or self._closed):
                    self._changed.wait()
                if self._closed:
                    break
                ready = self._ready()
            self._writing += [request.answer for request in ready]
            try:
                self._join(ready)
                self._batcher.step()
            except Exception as error:
                _LOG.exception("these answers cannot be written")
                self._fail(f"the answer cannot be written: {type(error).__name__}")
                self._batcher = self._made()
            self._writing = [answer for answer in self._writing if not answer.ended]
        self._writing += [request.answer for request in self._queue]
        self._fail(_STOPPING)

    def _fail(self, reason: str) -> None:
        """Tell everybody whose answer has begun, so that nobody waits for ever."""
        for answer in self._writing:
            if not answer.ended:
                answer.fail(reason)

    def _ready(self) -> list[Waiting]:
        """Return the requests that join now; those that nobody waits for are left out."""
        found: list[Waiting] = []
        while self._queue and len(found) < self._batcher.free:
            request = self._queue.popleft()
            if not request.answer.left:
                found.append(request)
        return found

    def _join(self, ready: Sequence[Waiting]) -> None:
        if not ready:
            return
        try:
            embedded = self.embeddings.of([request.images for request in ready])
            made = [
                request.write(patches) for request, patches in zip(ready, embedded, strict=True)
            ]
            self._batcher.join(made)
        except ModelError as error:
            if len(ready) == 1:
                ready[0].answer.fail(error.sentence)
                return
            for each in ready:  # one of them is at fault
                self._join([each])
