"""When a transfer is tried again: one policy for every download."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from storage.errors import StorageError, TransientError

_LONGEST_PAUSE = 60.0  # seconds


@dataclass(frozen=True)
class Patience:
    """How often and how long to try.

    Attributes:
        attempts: Failures in a row, without anything new, before giving up.
        backoff: Seconds before the second attempt; doubles up to a minute, with jitter.
        timeout: Seconds of silence that count as a failure.
        connections: Requests at the same time.
    """

    attempts: int = 5
    backoff: float = 1.0
    timeout: float = 60.0
    connections: int = 16


PATIENCE = Patience()


class Retries:
    """Counts the failures in a row of one transfer and waits between its attempts."""

    def __init__(
        self, patience: Patience, remedy: str, wait: Callable[[float], object] = time.sleep
    ) -> None:
        self._patience, self._remedy, self._wait = patience, remedy, wait
        self._failures = 0

    def progress(self) -> None:
        """Note that something new has come: failures are counted from here."""
        self._failures = 0

    def failed(self, error: StorageError, note: str = "") -> None:
        """Wait before the next attempt.

        Raises:
            StorageError: No attempts are left; it has the class of `error`.
        """
        self._failures += 1
        if self._failures >= self._patience.attempts:
            attempts = f"attempts in a row: {self._failures}{note}"
            raise type(error)(f"{error.message} ({attempts})", self._remedy) from None
        asked = error.pause if isinstance(error, TransientError) else 0.0
        self._wait(max(_pause(self._failures, self._patience.backoff), min(asked, _LONGEST_PAUSE)))


def _pause(failures: int, backoff: float) -> float:
    """Return the seconds to wait after a number of failures in a row.

    Half of it is random, so that many connections do not come back together.
    """
    pause = backoff * 2 ** (failures - 1) * (0.5 + secrets.SystemRandom().random() / 2)
    return min(pause, _LONGEST_PAUSE)
