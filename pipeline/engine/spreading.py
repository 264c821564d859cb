"""Jobs that other processes do in any order, and this one uses in theirs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from pipeline.engine.stage import FanOut


class Job(Protocol):
    """Work for another process, which leaves its result in a file.

    Attributes:
        number: Names the file; jobs have the numbers 0, 1, 2….
    """

    @property
    def number(self) -> int:
        """Return it."""
        ...


J = TypeVar("J", bound=Job)


def in_order(
    fan_out: FanOut, function: Callable[[Any], int], jobs: Sequence[J], is_done: Callable[[J], bool]
) -> Iterator[J]:
    """Yield each job once it is done, in the order of their numbers, while later ones go on.

    Args:
        fan_out: Spreads them.
        function: Does one, and returns its number.
        jobs: All of them.
        is_done: Returns whether a run before this one did a job.
    """
    done = {job.number for job in jobs if is_done(job)}
    left = [job for job in jobs if job.number not in done]
    coming = iter(fan_out(function, left) if left else ())
    for job in jobs:
        while job.number not in done:
            done.add(next(coming))
        yield job
