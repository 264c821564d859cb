"""Spread jobs over a Dask cluster, with one setting; a lost worker costs only its current job.

Dask is used directly and not through Prefect's task runner: a job is not a task run, so a
thousand jobs cost Prefect's server nothing, and Dask's own scheduler gives the job of a dead
worker to another one. A scheduler that comes back under its address gets the jobs that are left.
A worker whose code or libraries would give other results refuses its first job.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

from pipeline.engine.code_identity import code_digests
from pipeline.engine.materialize import PACKAGES, installed_version
from pipeline.engine.stage import FanOut
from pipeline.errors import PipelineError

LOST_WORKERS = 3  # workers that one job may lose before it is given up
LOST_SCHEDULERS = 3  # schedulers that one stage may lose
# Variables of glibc: Dask sets the first for its workers.
TRIM, ARENAS = "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"


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
        PipelineError: Dask is not installed, the scheduler does not answer or is lost again and
            again, a worker has other code than this process, or one job lost several workers.
    """
    try:
        from dask import config
        from distributed import CancelledError, KilledWorker
    except ImportError:
        raise PipelineError(
            f"task_runner={task_runner} needs Dask", "pip install 'phivision[scale]'"
        ) from None
    with ExitStack() as stack:
        stack.enter_context(config.set({"distributed.scheduler.allowed-failures": LOST_WORKERS}))
        address: Any = task_runner
        if task_runner.startswith("dask:"):
            count = int(task_runner.removeprefix("dask:"))
            address = stack.enter_context(local_cluster(count))
        left = dict(enumerate(jobs))
        for _ in range(LOST_SCHEDULERS + 1):
            try:
                yield from _submit(address, partial(_checked, version_of(function), function), left)
            except KilledWorker as error:
                raise PipelineError(
                    f"one job lost {LOST_WORKERS + 1} workers",
                    "see their logs: often memory ran out; finished jobs are kept",
                ) from error
            except CancelledError:  # the scheduler is gone, and all that it knew of jobs
                continue
            return
        raise PipelineError(
            f"the Dask scheduler at {task_runner} was lost {LOST_SCHEDULERS + 1} times",
            "see its log, then run again: finished jobs are kept",
        )


@contextmanager
def local_cluster(workers: int) -> Generator[Any]:
    """Yield a Dask cluster of processes on this machine, with one thread each.

    Dask has each process give freed memory back to the system at once. Then every forward pass gets
    its memory page by page anew: with ViT-B/32 on a CPU an image took 119 ms of processor, without
    it 94 (docs/performance.md). A job runs in a thread, and glibc keeps large blocks for the main
    thread only, unless all share one arena.
    """
    from dask import config
    from distributed import LocalCluster

    name = "distributed.nanny.pre-spawn-environ"
    kept = {key: value for key, value in config.get(name).items() if key != TRIM} | {ARENAS: 1}
    with (
        config.set({name: kept}),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        yield cluster


def _submit(address: Any, function: Callable[[Any], int], left: dict[int, Any]) -> Iterator[int]:
    """Yield what each job returns, and remove it from those that are left."""
    from distributed import Client, as_completed

    try:
        client = Client(address)
    except OSError as error:
        raise PipelineError(
            f"no Dask scheduler answers at {address}", "start one: dask scheduler"
        ) from error
    with client:
        futures = {client.submit(function, job, pure=False): at for at, job in left.items()}
        for future in as_completed(futures):
            done = future.result()
            del left[futures[future]]
            yield done


def version_of(function: Callable[[Any], int]) -> Mapping[str, str]:
    """Return digests of the code that a function reaches, and versions of libraries beside it."""
    inner: Any = function.func if isinstance(function, partial) else function
    return _version(inner.__module__, inner.__name__)


@cache  # a process keeps the code that it has loaded, and a worker does many jobs
def _version(module: str, name: str) -> Mapping[str, str]:
    return {package: installed_version(package) for package in PACKAGES} | code_digests(
        module, name
    )


def _checked(version: Mapping[str, str], function: Callable[[Any], int], job: Any) -> int:
    """Do a job, in a worker, unless the worker would do it otherwise than the run that asks.

    Raises:
        PipelineError: It has other code or other libraries.
    """
    ours = version_of(function)
    names = sorted(name for name in {*version, *ours} if version.get(name) != ours.get(name))
    if names:
        from distributed import get_worker

        raise PipelineError(
            f"the Dask worker {get_worker().address} has another version than this run of: "
            + ", ".join(names),
            "install there what is installed here and restart it; finished jobs are kept",
        )
    return function(job)
