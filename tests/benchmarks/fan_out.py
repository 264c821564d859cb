"""What features cost on 1, 2 and 4 Dask workers, in processor seconds and by the clock.

Run it from the repository root: `python tests/benchmarks/fan_out.py`. The stages `images` and
`examples` are in `data_fan_out.py`. For each number of workers, one process and the workers make
the same shards in turns, one thread each. A cluster's workers load the encoder before the first
turn, as on machines that make many shards; what this costs is a column of its own. Processor
seconds are those of all processes, the scheduler among them; the clock says something only where
each worker has a core.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from distributed import Client

from flows.runner.fan_out import fan_out, local_cluster
from pipeline.features.extraction import ShardJob, make_shard, make_shards, open_encoder
from storage.features.shards import verify_shard
from tests.benchmarks.helpers.cluster_costs import (
    HEAD,
    Cost,
    print_sides,
    processor_seconds,
    timed,
)
from tests.benchmarks.helpers.extraction_inputs import Inputs, add_options


def alone(inputs: Inputs, folder: Path, jobs: Sequence[ShardJob]) -> Cost:
    """Return what it costs this process to make all shards."""
    torch.set_num_threads(inputs.given.threads)
    extraction = inputs.extraction(folder, inputs.given.threads)
    open_encoder(extraction)
    return timed(lambda: make_shards(extraction, jobs, lambda _: None), time.process_time)


def distributed(inputs: Inputs, folder: Path, jobs: Sequence[ShardJob], client: Client) -> Cost:
    """Return what it costs the workers of a cluster to make all shards."""
    address = client.scheduler.address
    run, extraction = fan_out(address), inputs.extraction(folder, inputs.given.threads)
    assert run is not None

    def make() -> None:
        done = sum(run(partial(make_shard, extraction), jobs))
        assert done == sum(len(job.rows) for job in jobs)

    return timed(make, lambda: processor_seconds(client))


def finish(folder: Path, jobs: Sequence[ShardJob]) -> None:
    """Check all shards and remove them."""
    for job in jobs:
        verify_shard(folder, job.number)
    shutil.rmtree(folder)


def measure(inputs: Inputs, folder: Path, workers: int) -> None:
    """Print the lines of one process and of so many workers."""
    given, jobs = inputs.given, inputs.jobs(inputs.given.shard)
    sides: dict[str, list[Cost]] = {"one process": [], f"{workers} workers": []}
    began = time.perf_counter()
    with (
        local_cluster(workers) as cluster,
        Client(cluster) as client,
    ):
        distributed(inputs, folder, jobs[:workers], client)
        finish(folder, jobs[:workers])
        ready = Cost(time.perf_counter() - began, sum(client.run(time.process_time).values()))
        makers = alone, partial(distributed, client=client)
        for turn in range(given.repeats):
            for side, make in sorted(zip(sides, makers, strict=True), reverse=bool(turn % 2)):
                sides[side].append(make(inputs, folder, jobs))
                finish(folder, jobs)
    print_sides(*sides.values(), workers, given.images, ready)


def main() -> None:
    """Print a table with two lines for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--shard", type=int, default=64, help="images per shard")
    add_options(parser, images=256)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{given.images} images in shards of {given.shard}, {cores} cores, {given.repeats} turns")
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
        inputs = Inputs(Path(name), given)
        for workers in given.workers:
            measure(inputs, Path(name) / "shards", workers)


if __name__ == "__main__":
    main()
