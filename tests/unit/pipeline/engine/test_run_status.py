"""The status of a run: what is left, what a reader finds, what dead runs leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine import run_status
from pipeline.engine.run_status import (
    FOLDER,
    RunStatus,
    current,
    read_snapshots,
    showing,
)

EXPECTED = {"images": 0.0, "features": 30.0, "pretrain": 100.0, "publish": None}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(run_status.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def status(tmp_path: Path, clock: Clock) -> RunStatus:
    return RunStatus(tmp_path, "here", "demo", EXPECTED)


def test_what_is_left_is_the_bar_and_what_stages_took_before(
    status: RunStatus, clock: Clock
) -> None:
    status.end("images", "cached", 0.1)
    status.begin("features")
    clock.now += 10
    shown = status.snapshot()
    assert shown.seconds_left() == (20 + 100, False)  # publish was never made
    assert [each.state for each in shown.stages] == ["cached", "at work", "waiting", "waiting"]
    status.work("embed images", 200, 100)  # half of it by a run that was killed
    clock.now += 5
    status.advance(50, "fast")
    shown = status.snapshot()
    assert (shown.label, shown.done, shown.rate, shown.note) == ("embed images", 150, 10.0, "fast")
    assert shown.seconds_left()[0] == 5 + 100
    status.end("features", "made", 15)
    status.end("pretrain", "made", 90)
    status.end("publish", "made", 1)
    assert status.snapshot().seconds_left() == (0, True)
    assert status.snapshot().label == ""


def test_another_process_reads_it_and_finds_nothing_after_the_end(
    status: RunStatus, tmp_path: Path, clock: Clock
) -> None:
    with showing(status):
        assert current() is status
        status.begin("images")
        (found,) = read_snapshots(tmp_path)
        assert found.process == os.getpid()
        assert found.title == "demo"
        status.work("draw", None, 0)
        clock.now += 0.5
        status.advance(1, "")  # within a second: not written
        assert read_snapshots(tmp_path)[0].done == 0
        clock.now += 1
        status.advance(1, "")
        assert read_snapshots(tmp_path)[0].done == 2
    assert current() is None
    assert read_snapshots(tmp_path) == []


def test_what_a_killed_run_left_is_removed_and_half_a_file_is_no_run(
    status: RunStatus, tmp_path: Path
) -> None:
    status.begin("images")
    (written,) = (tmp_path / FOLDER).glob("*.json")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    number = int(dead.stdout)
    left = written.with_name(f"{number}.json")
    left.write_text(json.dumps({**json.loads(written.read_text()), "process": number}))
    written.with_name("1.json").write_text(written.read_text()[:50])
    assert [each.process for each in read_snapshots(tmp_path)] == [os.getpid()]
    assert not left.exists()


def test_a_folder_that_cannot_be_written_stops_no_run(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("")
    status = RunStatus(tmp_path / "file", "here", "demo", EXPECTED)
    status.begin("images")
    status.remove()
