"""The thread that owns a model: it embeds images and writes all answers.

Requests that wait are taken together, as many as may join: one forward pass embeds their images,
one reads their prompts, then they are written side by side with those that have begun before. What
cannot be written so, such as a beam search, is a job that runs alone between two tokens of the
others.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from flows.inference.answer import Receiver
from flows.inference.embeddings import Embeddings, Shown
from flows.inference.limits import EngineLimits
from model.assistant import Assistant
from model.batching import Batcher, TextRequest
from model.errors import ModelError

Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)
_STOPPING = "the server is stopping"
# The thread ends after so long without work and a new one is started at need, so that whoever drops
# an engine need not stop it for its model to leave the memory.
_LINGER_SECONDS = 0.5
_PAUSE_SECONDS, _GATHER_SECONDS = 0.002, 0.01  # for the next one, and for all that come together


class FullError(Exception):
    """Too many requests wait."""


class StoppedError(Exception):
    """The engine does not work any more."""


class Waiting(NamedTuple):
    """A request that waits.

    Attributes:
        images: What it is about, from `Engine.embeddings`.
        write: Makes the request of their embeddings [image, patch, vision], in the engine's thread.
        answer: Gets the text.
    """

    images: Sequence[Shown]
    write: Callable[[torch.Tensor], TextRequest]
    answer: Receiver


class Engine:
    """Writes answers side by side, and does jobs between their tokens.

    Args:
        assistant: Whose model writes; nobody else uses the model at the same time.
        limits: How much is taken on.
        after_step: Called when a token of each answer has been given to it.
    """

    def __init__(
        self,
        assistant: Assistant,
        limits: EngineLimits | None = None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.assistant, self._limits = assistant, limits or EngineLimits()
        self._after_step = after_step
        self.embeddings = Embeddings(assistant, self._limits.kept_bytes)
        self._made = partial(
            Batcher, assistant.vlm, assistant.template.eos_id, self._limits.at_once
        )
        self._batcher = self._made()
        self._writing: list[Receiver] = []
        self._queue: deque[Waiting] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._joined = 0  # how many joined together last

    @property
    def waiting(self) -> int:
        """Requests and jobs that wait."""
        return len(self._queue) + len(self._jobs)

    @property
    def active(self) -> int:
        """Answers that are being written."""
        return self._batcher.active

    @contextmanager
    def running(self) -> Generator[None]:
        """Take requests until the block ends, then tell those that wait."""
        try:
            yield
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify()
                thread = self._thread
            if thread is not None:
                thread.join()

    def submit(self, request: Waiting) -> None:
        """Let an answer be written.

        Raises:
            FullError: Too many wait already.
        """
        with self._changed:
            if self._closed:
                request.answer.fail(_STOPPING)
                self._after_step()
                return
            self._refuse_more()
            self._queue.append(request)
            self._wake()

    def run(self, work: Callable[[], Result]) -> Result:
        """Return what a function gives that needs the model for itself; others wait meanwhile.

        Raises:
            FullError: Too many wait already.
            StoppedError: The engine does not work any more.
        """
        done: Future[Result] = Future()

        def job() -> None:
            if self._closed:
                done.set_exception(StoppedError(_STOPPING))
                return
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

        with self._changed:
            if self._closed:
                raise StoppedError(_STOPPING)
            self._refuse_more()
            self._jobs.append(job)
            self._wake()
        return done.result()

    def _refuse_more(self) -> None:
        # Those that can join at once do not count as waiting.
        behind = max(len(self._queue) - self._batcher.free, 0) + len(self._jobs)
        if behind >= self._limits.waiting:
            raise FullError

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="writing", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._has_work():
                    self._thread = None
                    return
                if self._closed:
                    break
                self._gather()
                ready = self._ready()
                job = self._jobs.popleft() if self._jobs else None
            self._write(ready)
            if job is not None:
                job()
        self._writing += [request.answer for request in self._queue]
        self._fail(_STOPPING)
        self._after_step()
        for job in self._jobs:
            job()

    def _gather(self) -> None:
        """Wait for those who ask at the same time as the one that came first.

        Clients whose answers ended together ask again one after the other: the first one would be
        read alone, while all others wait for that. Nobody waits here who is alone, or while
        answers are being written, and only for half of the places: the others are asked for while
        these are written.
        """
        end = time.monotonic() + _GATHER_SECONDS
        idle = self._joined > 1 and not self._batcher.active
        enough = min(self._joined, self._batcher.free // 2) if idle else 0
        while 0 < len(self._queue) < enough:
            before = len(self._queue)
            self._changed.wait(_PAUSE_SECONDS)
            if len(self._queue) == before or time.monotonic() > end:
                return

    def _has_work(self) -> bool:
        """Wait for work and return whether there is some, or the end to be told."""

        def comes() -> bool:
            return bool(self._queue or self._jobs or self._batcher.active or self._closed)

        return self._changed.wait_for(comes, _LINGER_SECONDS)

    def _write(self, ready: Sequence[Waiting]) -> None:
        """Let requests join, and write the next token of all."""
        self._writing += [request.answer for request in ready]
        try:
            self._join(ready)
            self._batcher.step()
        except Exception as error:
            _LOG.exception("these answers cannot be written")
            self._fail(f"the answer cannot be written: {type(error).__name__}")
            self._batcher = self._made()
        self._writing = [answer for answer in self._writing if not answer.ended]
        self._after_step()

    def _fail(self, reason: str) -> None:
        """Tell everybody whose answer has begun, so that nobody waits for ever."""
        for answer in self._writing:
            if not answer.ended:
                answer.fail(reason)

    def _ready(self) -> list[Waiting]:
        """Return the requests that join now; those that nobody waits for are left out."""
        ready: list[Waiting] = []
        while self._queue and len(ready) < self._batcher.free:
            request = self._queue.popleft()
            if not request.answer.left:
                ready.append(request)
        self._joined = len(ready) or self._joined
        return ready

    def _text(self, request: Waiting, patches: torch.Tensor) -> TextRequest:
        """Return a text that is to be written; an image that was read before is not read again."""
        made = request.write(patches)
        if len(request.images) == 1:
            (image,) = request.images
            made.prefix = self.embeddings.prefix(image)
            made.keep = partial(self.embeddings.keep_prefix, image)
        return made

    def _join(self, ready: Sequence[Waiting]) -> None:
        if not ready:
            return
        try:
            embedded = self.embeddings.of([request.images for request in ready])
            made = [self._text(*each) for each in zip(ready, embedded, strict=True)]
            self._batcher.join(made)
        except ModelError as error:
            if len(ready) == 1:
                ready[0].answer.fail(error.sentence)
                return
            for request in ready:  # one of them is at fault
                self._join([request])
