"""Fan-out to a scheduler and workers that were started as on other machines, by their commands."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from flows.runner import fan_out as module
from flows.runner.fan_out import fan_out
from pipeline.errors import PipelineError
from storage.tables import is_int64

cloudpickle = pytest.importorskip("cloudpickle")
pytest.importorskip("distributed")
config = pytest.importorskip("dask").config

pytestmark = [
    pytest.mark.timeout(900),  # each process imports Dask, on a machine that may be busy
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
ROOT = Path(__file__).resolve().parents[4]
JOBS = 6


class Cluster:
    """A scheduler at one address and its workers, each a process."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._folder = folder

    def start(self, project: Path = ROOT) -> None:
        """Start a scheduler and a worker that imports phivision from a folder."""
        self._start("scheduler", ["--host", "127.0.0.1", "--port", str(self.port)], project)
        worker = ["--nthreads", "1", "--no-nanny", "--death-timeout", "300"]
        self._start("worker", [self.address, *worker], project)

    def _start(self, role: str, options: list[str], project: Path) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{role}", "--no-dashboard", *options]
        path = {"PYTHONPATH": str(project), "PYTHONSAFEPATH": "1"}
        with (self._folder / f"{role}.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    command, cwd=self._folder, env=os.environ | path, stdout=log, stderr=log
                )
            )

    def kill(self) -> None:
        """End all processes at once, as where a machine loses its power."""
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.processes.clear()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster(tmp_path)
    with config.set({"distributed.comm.timeouts.connect": "300s"}):
        try:
            yield cluster
        finally:
            cluster.kill()


def make(folder: Path, number: int) -> int:
    """Write down that a job began."""
    with (folder / "calls.txt").open("a") as calls:
        calls.write(f"{number}\n")
    time.sleep(0.2)
    return number


def test_a_scheduler_that_is_restarted_gets_the_jobs_that_are_left(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.start()
    spread = fan_out(cluster.address)
    assert spread is not None
    coming = iter(spread(partial(make, tmp_path), range(JOBS)))
    before = [next(coming), next(coming)]
    cluster.kill()
    cluster.start()
    after = list(coming)
    assert sorted([*before, *after]) == list(range(JOBS))
    calls = Counter(map(int, (tmp_path / "calls.txt").read_text().split()))
    assert {number: calls[number] for number in before} == dict.fromkeys(before, 1)
    assert max(calls.values()) <= 2


def test_a_scheduler_that_is_lost_too_often_is_told(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOST_SCHEDULERS", 1)
    cluster.start()
    spread = fan_out(cluster.address)
    assert spread is not None
    coming = iter(spread(partial(make, tmp_path), range(JOBS)))
    done = [next(coming)]
    cluster.kill()
    cluster.start()
    done.append(next(coming))
    cluster.kill()
    with pytest.raises(PipelineError, match="was lost 2 times") as told:
        list(coming)
    assert "finished jobs are kept" in str(told.value)
    assert len(set(done)) == 2


def _edited(text: str) -> str:
    assert "-(2**63) <= value < 2**63" in text
    return text.replace("-(2**63) <= value < 2**63", "-(2**62) <= value < 2**62")


def _commented(text: str) -> str:
    return text.replace("PIECE = 8192", "# A comment changes no result.\nPIECE = 8192")


@pytest.mark.parametrize(("edit", "refused"), [(_edited, True), (_commented, False)])
def test_a_worker_with_another_version_of_the_code_is_refused(
    cluster: Cluster, tmp_path: Path, edit: Callable[[str], str], refused: bool
) -> None:
    project = tmp_path / "project"
    ignored = shutil.ignore_patterns("__pycache__")
    for package in ("flows", "pipeline", "model", "storage"):
        shutil.copytree(ROOT / package, project / package, ignore=ignored)
    path = project / "storage/tables.py"
    before = path.read_text()
    path.write_text(edit(before))
    assert path.read_text() != before
    cluster.start(project)
    spread = fan_out(cluster.address)
    assert spread is not None
    if not refused:
        assert list(spread(is_int64, [1])) == [True]
        return
    with pytest.raises(PipelineError, match=r"another version .* of: storage/tables\.py") as told:
        list(spread(is_int64, [1]))
    assert "tcp://127.0.0.1:" in str(told.value)
    assert "restart it" in str(told.value)
