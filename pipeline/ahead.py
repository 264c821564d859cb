"""Work done ahead by threads, with its results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def ahead(
    pool: ThreadPoolExecutor,
    call: Callable[[Given], Made],
    source: Iterable[Given],
    limit: int,
) -> Iterator[Made]:
    """Yield `call` of each item in order, with up to `limit` on their way.

    The source is read by whoever takes the results, never by two threads at once.
    """
    coming: deque[Future[Made]] = deque()
    stream = iter(source)
    coming.extend(pool.submit(call, item) for item in islice(stream, limit))
    while coming:
        made = coming.popleft().result()
        coming.extend(pool.submit(call, item) for item in islice(stream, 1))
        yield made
