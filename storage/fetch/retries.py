"""How patient a transfer of many parts is: attempts, pauses and connections."""

import secrets
from dataclasses import dataclass

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


def pause_after(failures: int, backoff: float, asked: float = 0.0) -> float:
    """Return the seconds to wait after so many failures in a row.

    Half of it is chance, so that many connections do not come back together.

    Args:
        failures: At least 1.
        backoff: Seconds after the first failure, at most.
        asked: Seconds that the other side asked to wait.
    """
    pause = backoff * 2 ** (failures - 1) * (0.5 + secrets.SystemRandom().random() / 2)
    return min(max(pause, asked), _LONGEST_PAUSE)
