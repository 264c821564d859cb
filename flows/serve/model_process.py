"""The side of the model: it writes what the HTTP process asks for."""

from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

from flows.inference.engine import Engine, Waiting
from flows.serve.link import MISSING, Ask, Leave, Outbox
from model.batching import TextRequest


@dataclass
class _Sent:
    """An answer whose tokens go to the HTTP process; see `flows.inference.answer.Answer`."""

    number: int
    outbox: Outbox
    left: bool = False
    ended: bool = False

    def take(self, token: int | None) -> bool:
        """Send a token, or None at the end; return whether the text is to go on."""
        self.ended = token is None
        self.outbox.put((self.number, token))
        return not self.left

    def fail(self, reason: str) -> None:
        """Say that the answer cannot be written."""
        self.ended = True
        self.outbox.put((self.number, reason))


class ModelSide:
    """Hands requests to an engine until the HTTP process ends.

    Args:
        engine: Writes; it calls `outbox.flush` after each step, and bounds no queue, since the HTTP
            process does.
        connection: To the HTTP process.
        outbox: What is sent there.
    """

    def __init__(self, engine: Engine, connection: Connection, outbox: Outbox) -> None:
        self._engine, self._connection, self._outbox = engine, connection, outbox
        self._answers: dict[int, _Sent] = {}

    def serve(self) -> None:
        """Take requests until the other side has closed the connection."""
        while True:
            try:
                message: Ask | Leave = self._connection.recv()
            except (EOFError, ConnectionError):
                return
            if isinstance(message, Ask):
                self._ask(message)
            elif answer := self._answers.pop(message.number, None):
                answer.left = True

    def _ask(self, ask: Ask) -> None:
        images = [self._engine.embeddings.recall(*image) for image in ask.images]
        if any(image.pixels is None and image.patches is None for image in images):
            self._outbox.put((ask.number, MISSING))
            self._outbox.flush()
            return
        self._forget_ended()
        answer = self._answers[ask.number] = _Sent(ask.number, self._outbox)
        write = partial(
            TextRequest,
            prompt=ask.prompt,
            max_new_tokens=ask.longest,
            decoding=ask.decoding,
            take=answer.take,
            has_image=bool(images),
        )
        self._engine.submit(Waiting(images, write, answer))

    def _forget_ended(self) -> None:
        for number in [number for number, answer in self._answers.items() if answer.ended]:
            del self._answers[number]
