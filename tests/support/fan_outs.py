"""Stand-ins for a cluster, in this process."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class Backwards:
    """Does jobs as a cluster of one would that begins with the last: from copies of what is sent.

    Args:
        before: Called with each job before it is done.

    Attributes:
        done: Numbers of the jobs that were done.
    """

    def __init__(self, before: Callable[[Any], None] = lambda job: None) -> None:
        self.before, self.done = before, list[int]()

    def __call__(self, function: Callable[[Any], int], jobs: Sequence[Any]) -> Iterator[int]:
        """Yield what each job returns."""
        for sent in [pickle.dumps((function, job)) for job in reversed(jobs)]:
            there, job = pickle.loads(sent)
            self.before(job)
            self.done.append(there(job))
            yield self.done[-1]
