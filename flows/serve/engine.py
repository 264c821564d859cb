"""The thread that writes all answers: requests wait in a bounded queue and join at any token."""

import logging
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

from flows.serve.answer import Answer
from model.assistant import Assistant
from model.batching import Batcher, TextRequest
from model.errors import ModelError

_LOG = logging.getLogger(__name__)


class FullError(Exception):
    """Too many requests wait."""


class Engine:
    """Writes answers side by side.

    Args:
        assistant: Whose model writes.
        at_once: Texts side by side.
        waiting: Requests that may wait behind them.
    """

    def __init__(self, assistant: Assistant, at_once: int, waiting: int) -> None:
        self._made = partial(Batcher, assistant.vlm, assistant.template.eos_id, at_once)
        self._batcher = self._made()
        self._writing: list[Answer] = []
        self._most = waiting
        self._queue: deque[tuple[TextRequest, Answer]] = deque()
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

    def submit(self, request: TextRequest, answer: Answer) -> None:
        """Let an answer be written.

        Raises:
            FullError: Too many wait already.
        """
        with self._changed:
            # Those that can join at once do not count as waiting.
            if len(self._queue) >= self._most + max(self._batcher.free, 0):
                raise FullError
            self._queue.append((request, answer))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._batcher.active or self._closed):
                    self._changed.wait()
                if self._closed:
                    break
                ready = self._ready()
            self._writing += [answer for _, answer in ready]
            try:
                self._join(ready)
                self._batcher.step()
            except Exception as error:
                _LOG.exception("these answers cannot be written")
                self._fail(f"the answer cannot be written: {type(error).__name__}")
                self._batcher = self._made()
            self._writing = [answer for answer in self._writing if not answer.ended]
        self._writing += [answer for _, answer in self._queue]
        self._fail("the server is stopping")

    def _fail(self, reason: str) -> None:
        """Tell everybody whose answer has begun, so that nobody waits for ever."""
        for answer in self._writing:
            if not answer.ended:
                answer.fail(reason)

    def _ready(self) -> list[tuple[TextRequest, Answer]]:
        """Return the requests that join now; those that nobody waits for are left out."""
        found: list[tuple[TextRequest, Answer]] = []
        while self._queue and len(found) < self._batcher.free:
            request, answer = self._queue.popleft()
            if not answer.left:
                found.append((request, answer))
        return found

    def _join(self, ready: list[tuple[TextRequest, Answer]]) -> None:
        try:
            self._batcher.join([request for request, _ in ready])
        except ModelError as error:
            if len(ready) == 1:
                ready[0][1].fail(str(error))
                return
            for each in ready:  # one of them is at fault
                self._join([each])
