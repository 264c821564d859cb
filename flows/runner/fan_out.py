"""Spread jobs over a Dask cluster, with one setting; a lost worker costs only its current job.

Dask is used directly and not through Prefect's task runner: a shard is not a task run, so a
thousand shards cost Prefect's server nothing, and Dask's own scheduler gives the job of a dead
worker to another one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from pipeline.engine.stage import FanOut
from pipeline.errors import PipelineError

LOST_WORKERS = 3  # workers that one job may lose before it is given up


def fan_out(task_runner: str) -> FanOut | None:
    """Return the function that spreads jobs as a setting says, or None for one process.

    Args:
        task_runner: `threads`, `dask:N` or the address of a scheduler, as in `Settings`.
    """
    return None if task_runner == "threads" else partial(_on_dask, task_runner)


def _on_dask(
    task_runner: str, function: Callable[[Any], int], jobs: Sequence[Any]
) -> Iterator[int]:
    """Yield what each job returns, as they finish.

    Raises:
        PipelineError: Dask is not installed, the scheduler does not answer, or one job lost
            several workers.
    """
    try:
        from dask import config
        from distributed import Client, KilledWorker, LocalCluster, as_completed
    except ImportError:
        raise PipelineError(
            f"task_runner={task_runner} needs Dask", "pip install 'phivision[scale]'"
        ) from None
    with ExitStack() as stack:
        stack.enter_context(config.set({"distributed.scheduler.allowed-failures": LOST_WORKERS}))
        address: Any = task_runner
        if task_runner.startswith("dask:"):
            count = int(task_runner.removeprefix("dask:"))
            address = stack.enter_context(
                LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None)
            )
        try:
            client = stack.enter_context(Client(address))
        except OSError as error:
            raise PipelineError(
                f"no Dask scheduler answers at {task_runner}", "start one: dask scheduler"
            ) from error
        futures = [client.submit(function, job, pure=False) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except KilledWorker as error:
            raise PipelineError(
                f"one shard lost {LOST_WORKERS + 1} workers",
                "see their logs: often memory ran out; finished shards are kept",
            ) from error
