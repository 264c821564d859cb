"""How fast features are extracted by Dask workers, beside one process with and without threads.

Run it from the repository root: `python tests/benchmarks/fan_out.py`. The sides make the same
shards in turns. A cluster is started once and its workers load the encoder before the first turn,
as on machines that make many shards; what this costs is printed. One process is timed twice: with
one thread for the forward pass, as each worker has, and with one for each worker.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from distributed import LocalCluster

from flows.runner.fan_out import fan_out
from pipeline.features.extraction import ShardJob, make_shard, make_shards, open_encoder
from storage.features.shards import verify_shard
from tests.benchmarks.helpers.extraction_inputs import Inputs, add_options


def alone(inputs: Inputs, folder: Path, jobs: Sequence[ShardJob], threads: int) -> float:
    """Return the seconds in which this process makes all shards."""
    torch.set_num_threads(threads)
    extraction = inputs.extraction(folder, threads)
    open_encoder(extraction)
    began = time.perf_counter()
    make_shards(extraction, jobs, lambda _: None)
    return time.perf_counter() - began


def spread(inputs: Inputs, folder: Path, jobs: Sequence[ShardJob], address: str) -> float:
    """Return the seconds in which the workers of a cluster make all shards."""
    run, extraction = fan_out(address), inputs.extraction(folder, inputs.given.threads)
    assert run is not None
    began = time.perf_counter()
    done = sum(run(partial(make_shard, extraction), jobs))
    assert done == sum(len(job.rows) for job in jobs)
    return time.perf_counter() - began


def finish(folder: Path, jobs: Sequence[ShardJob]) -> None:
    """Check all shards and remove them."""
    for job in jobs:
        verify_shard(folder, job.number)
    shutil.rmtree(folder)


def main() -> None:
    """Print the rate of each side, and the workers' as a ratio of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard", type=int, default=64, help="images per shard")
    add_options(parser, images=512)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
        inputs, shards = Inputs(Path(name), given), Path(name) / "shards"
        jobs, began = inputs.jobs(given.shard), time.perf_counter()
        with LocalCluster(
            n_workers=given.workers, threads_per_worker=1, dashboard_address=None
        ) as cluster:
            address = cluster.scheduler_address
            spread(inputs, shards, jobs[: given.workers], address)
            print(f"cluster, imports and a shard each: {time.perf_counter() - began:.1f} s")
            workers = f"{given.workers} workers"
            took: dict[str, list[float]] = {}
            for turn in range(given.repeats):
                sides = {
                    "one thread": lambda: alone(inputs, shards, jobs, given.threads),
                    "all threads": lambda: alone(
                        inputs, shards, jobs, given.threads * given.workers
                    ),
                    workers: lambda: spread(inputs, shards, jobs, address),
                }
                for side in sorted(sides, reverse=bool(turn % 2)):
                    took.setdefault(side, []).append(sides[side]())
                    finish(shards, jobs)
                    print(f"  {side}: {given.images / took[side][-1]:.2f} images/s", flush=True)
        for side, seconds in took.items():
            ratios = [one / many for one, many in zip(seconds, took[workers], strict=True)]
            print(
                f"{side:12} {given.images / statistics.median(seconds):7.2f} images/s; "
                f"{workers} are {statistics.median(ratios):.2f} times as fast"
                f" ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
