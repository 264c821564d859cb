"""What work costs one process and the workers of a Dask cluster, measured in turns."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from distributed import Client

from tests.benchmarks.helpers.spread import ratio, spread

HEAD = (
    "| | ms of processor per image | seconds | images/s | times as fast as one process "
    "| start of the cluster, clock / processor seconds |\n|---|--:|--:|--:|--:|--:|"
)


class Cost(NamedTuple):
    """What doing all work took.

    Attributes:
        clock: Seconds.
        processor: Seconds of all processes together.
    """

    clock: float
    processor: float


def timed(make: Callable[[], None], processor: Callable[[], float]) -> Cost:
    """Return what a call costs."""
    clock, before = time.perf_counter(), processor()
    make()
    took = time.perf_counter() - clock
    return Cost(took, processor() - before)


def processor_seconds(client: Client) -> float:
    """Return the processor seconds of all workers and of this process, where the scheduler is."""
    return time.process_time() + sum(client.run(time.process_time).values())


def print_sides(
    alone: Sequence[Cost], spread_out: Sequence[Cost], workers: int, images: int, ready: Cost
) -> None:
    """Print the lines of one process and of so many workers.

    Args:
        alone: What it cost one process, in each turn.
        spread_out: What it cost the workers, in each turn.
        workers: How many.
        images: Of the work.
        ready: What it cost to start the cluster.
    """
    one = [cost.clock for cost in alone]
    start = f"{ready.clock:.1f} / {ready.processor:.1f}"
    for side, costs, begun in (
        ("one process", alone, ""),
        (f"{workers} workers", spread_out, start),
    ):
        clock = [cost.clock for cost in costs]
        processor = [1000 * cost.processor / images for cost in costs]
        print(
            f"| {side} | {spread(processor)} | {spread(clock, 1)} "
            f"| {spread([images / each for each in clock], 1)} | {ratio(one, clock)} | {begun} |",
            flush=True,
        )
