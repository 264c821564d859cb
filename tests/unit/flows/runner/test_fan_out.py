"""Fan-out over a real Dask cluster: a killed worker costs the one job it was doing."""

import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows.runner.fan_out import ARENAS, TRIM, fan_out, local_cluster
from pipeline.engine.stage import FanOut
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from tests.unit.pipeline.data.test_image_checks import dataset as broken_dataset
from tests.unit.pipeline.data.test_image_checks import made
from tests.unit.pipeline.features.test_features import content, embed, images_in, made_backbones

cloudpickle = pytest.importorskip("cloudpickle")
distributed = pytest.importorskip("distributed")
config = pytest.importorskip("dask").config

# The cluster's sockets may still be closing when the test ends.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


def test_workers_keep_memory_that_they_use_again() -> None:
    with local_cluster(1) as cluster, distributed.Client(cluster) as client:
        (trim,) = client.run(os.environ.get, TRIM).values()
        (arenas,) = client.run(os.environ.get, ARENAS).values()
        (threads,) = client.run(os.environ.get, "OMP_NUM_THREADS").values()
    assert (trim, arenas, threads) == (None, "1", "1")


def dying(function: Callable[[Any], int], folder: Path, job: Any) -> int:
    """Do a job of a stage; the first worker that has done number 1 dies before it can say."""
    with (folder / "calls.txt").open("a") as calls:
        calls.write(f"{job.number}\n")
    done = function(job)
    mark = folder / "died"
    if job.number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return done


def losing_one(folder: Path) -> FanOut:
    """Return what spreads jobs over two workers, one of which dies."""

    def spread(function: Callable[[Any], int], jobs: Sequence[Any]) -> Iterator[int]:
        cluster = fan_out("dask:2")
        assert cluster is not None
        yield from cluster(partial(dying, function, folder), jobs)

    return spread


@pytest.mark.slow
@pytest.mark.timeout(600)  # workers import torch, on a machine that may be busy
def test_the_stage_on_a_cluster_that_loses_a_worker_gives_the_same_files(tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    images = images_in(tmp_path / "images", range(72))
    backbones = made_backbones(tmp_path / "backbones", seed=0)
    alone, summary = embed(tmp_path / "alone", images, backbones)

    spread = losing_one(tmp_path)
    spread_out, same = embed(tmp_path / "spread", images, backbones, fan_out=spread)
    assert (tmp_path / "died").exists()
    assert same == summary
    assert content(spread_out) == content(alone)


@pytest.mark.timeout(600)
def test_a_killed_worker_costs_one_job_and_the_files_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers cannot import a test by its name, so its functions travel by value.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("pipeline.data.images._AT_ONCE", 8)
    root = broken_dataset(tmp_path / "coco", "zip")
    alone, _ = made(root, tmp_path / "alone")

    files, said = made(root, tmp_path / "spread", losing_one(tmp_path))
    assert (files, said) == (alone, [])
    calls = Counter(map(int, (tmp_path / "calls.txt").read_text().split()))
    assert calls.pop(1) == 2
    assert calls == Counter([0, 2, 3, 4])


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
