"""One answer as it grows: from token ids to pieces of text that will not change any more."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

Reason = Literal["stop", "length"]
_TORN = "\ufffd"  # what the bytes of an unfinished character decode to


class Piece(NamedTuple):
    """What is new of an answer.

    Attributes:
        text: Text behind what was sent before.
        tokens: Tokens written so far, without the ending one.
        reason: Why the answer has ended, None before.
        error: Why it could not be written, "" where it could.
    """

    text: str
    tokens: int
    reason: Reason | None = None
    error: str = ""


class Receiver(Protocol):
    """What an engine must know of whom it writes for.

    Attributes:
        left: Whether nobody waits for the answer any more.
        ended: Whether the end has come, or been told.
    """

    left: bool
    ended: bool

    def fail(self, reason: str) -> None:
        """Say that the answer cannot be written."""


class Answer:
    """Collects the tokens of an answer; `take` is what `model.batching` calls.

    Args:
        decode: Gives the text of token ids.
        longest: Tokens after which the answer is cut.
        stops: Texts that end it and are not part of it.
        send: Gets each piece, in the thread that writes.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        longest: int,
        stops: Sequence[str],
        send: Callable[[Piece], None],
    ) -> None:
        self._decode, self._longest, self._stops, self._send = decode, longest, stops, send
        self._ids: list[int] = []
        self._sent, self._stopped = 0, False
        self.left = self.ended = False

    def leave(self) -> None:
        """Say that nobody waits for the answer any more."""
        self.left = True

    def fail(self, reason: str) -> None:
        """Say that the answer cannot be written."""
        self.ended = True
        self._send(Piece("", len(self._ids), "stop", reason))

    def take(self, token: int | None) -> bool:
        """Take a token, or None at the end; return whether the text is to go on."""
        if token is not None:
            self._ids.append(token)
        text = self._decode(self._ids)
        places = [place for place in map(text.find, self._stops) if place >= 0]
        if places:
            text, self._stopped = text[: min(places)], True
        if token is None:
            self.ended = True
            cut = len(self._ids) >= self._longest and not self._stopped
            self._put(text, "length" if cut else "stop")
            return False
        if not self._stopped:
            self._put(text[: len(text) - self._unsure(text)], None)
        return not (self._stopped or self.left)

    def _put(self, text: str, reason: Reason | None) -> None:
        new = text[self._sent :]
        if new or reason:
            self._sent = max(self._sent, len(text))
            self._send(Piece(new, len(self._ids), reason))

    def _unsure(self, text: str) -> int:
        """Return how many characters at the end may still change or turn out to be a stop."""
        torn = len(text) - len(text.rstrip(_TORN))
        begun = (
            size
            for stop in self._stops
            for size in range(len(stop) - 1, 0, -1)
            if text.endswith(stop[:size])
        )
        return max(torn, *begun, 0)
