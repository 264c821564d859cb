"""Fan-out over a real Dask cluster: a killed worker costs the one shard it was making."""

import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from flows.runner.fan_out import TRIM, fan_out, local_cluster
from pipeline.errors import PipelineError
from pipeline.features.extraction import ShardJob
from pipeline.settings import Settings
from storage.features.shards import ShardRows, publish_shard, shard_paths, verify_shard
from tests.unit.pipeline.features.test_features import content, embed, images_in, made_backbones

cloudpickle = pytest.importorskip("cloudpickle")
distributed = pytest.importorskip("distributed")
config = pytest.importorskip("dask").config

# The cluster's sockets may still be closing when the test ends.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


def make(folder: Path, number: int) -> int:
    """Make a small shard; the first worker that is at number 1 dies half-way."""
    with (folder / "calls.txt").open("a") as calls:
        calls.write(f"{number}\n")
    mark = folder / "died"
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    rows = ShardRows(
        sha256=[f"{number:064x}"],
        image_id=np.array([number], np.int64),
        width=np.array([1], np.int32),
        height=np.array([1], np.int32),
        split=["train"],
        pooled=np.ones((1, 2), np.float32),
        patches=np.full((1, 2, 3), number, np.float16),
    )
    publish_shard(folder / "shards", number, rows, "encoder")
    return number


def test_a_killed_worker_costs_one_shard(tmp_path: Path) -> None:
    # Workers cannot import a test by its name, so its functions travel by value.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    spread = fan_out("dask:2")
    assert spread is not None
    assert sorted(spread(partial(make, tmp_path), range(6))) == list(range(6))
    for number in range(6):
        verify_shard(tmp_path / "shards", number)
        assert shard_paths(tmp_path / "shards", number)[0].is_file()
    calls = Counter((tmp_path / "calls.txt").read_text().split())
    assert calls.pop("1") == 2
    assert set(calls.values()) == {1}


def test_workers_keep_memory_that_they_use_again() -> None:
    with local_cluster(1) as cluster, distributed.Client(cluster) as client:
        (found,) = client.run(os.environ.get, TRIM).values()
        (threads,) = client.run(os.environ.get, "OMP_NUM_THREADS").values()
    assert (found, threads) == (None, "1")


def dying(make_it: Callable[[ShardJob], int], mark: Path, job: ShardJob) -> int:
    """Make a shard of the stage; the first worker that has made number 1 dies before it can say."""
    done = make_it(job)
    if job.number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return done


@pytest.mark.timeout(600)  # workers import torch, on a machine that may be busy
def test_the_stage_on_a_cluster_that_loses_a_worker_gives_the_same_files(tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    images = images_in(tmp_path / "images", range(72))
    backbones = made_backbones(tmp_path / "backbones", seed=0)
    alone, summary = embed(tmp_path / "alone", images, backbones)

    def spread(make_it: Callable[[ShardJob], int], jobs: Sequence[ShardJob]) -> Iterator[int]:
        cluster = fan_out("dask:2")
        assert cluster is not None
        yield from cluster(partial(dying, make_it, tmp_path / "died"), jobs)

    spread_out, same = embed(tmp_path / "spread", images, backbones, fan_out=spread)
    assert (tmp_path / "died").exists()
    assert same == summary
    assert content(spread_out) == content(alone)


def test_threads_need_no_cluster() -> None:
    assert fan_out("threads") is None


def test_a_scheduler_that_is_not_there_is_named() -> None:
    with config.set({"distributed.comm.timeouts.connect": "1s"}), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        spread = fan_out(address)
        assert spread is not None
        with pytest.raises(PipelineError, match="no Dask scheduler answers"):
            list(spread(abs, [1]))


@pytest.mark.parametrize("wrong", ["dask", "dask:0", "dask:two", "processes", "http://host:1"])
def test_an_unknown_task_runner_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="task_runner"):
        Settings(task_runner=wrong)
