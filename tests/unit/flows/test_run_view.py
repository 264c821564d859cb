"""A run at work as a person sees it, within 80 columns."""

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from flows.commands import watch
from flows.run_view import duration, view
from pipeline.engine.run_status import RunStatus, Snapshot, StageStatus
from pipeline.settings import Settings


def shown(**changes: object) -> str:
    stages = (
        StageStatus(name="images", state="cached", seconds=0.2, expected=0.0),
        StageStatus(name="finetune", state="at work", seconds=300.0, expected=1100.0),
        StageStatus(name="publish", state="waiting", seconds=None, expected=None),
    )
    now = time.time()
    values = {
        "title": "photos",
        "store": "store",
        "process": 7,
        "started": now - 4000,
        "updated": now,
        "stages": stages,
        "label": "finetune",
        "done": 200,
        "total": 700,
        "rate": 0.5,
        "note": "loss 2.5  val_nll 2.6",
        **changes,
    }
    text = io.StringIO()
    console = Console(file=text, width=80, soft_wrap=False)
    console.print(view(Snapshot.model_validate(values), 4_600_000_000))
    return text.getvalue()


def test_a_view_tells_stages_progress_time_left_and_memory() -> None:
    text = shown()
    assert "photos · store · 67 min · process 7 · 4.6 GB" in text
    assert re.search(r"finetune +at work +5 min +18 min", text)
    assert "finetune: 200 of 700, 0.5/s, 17 min left  loss 2.5  val_nll 2.6" in text
    assert "time left: at least 17 min" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_between_two_pieces_of_work_there_is_no_line_for_one() -> None:
    text = shown(label="", total=None, rate=None, done=0, note="")
    assert "finetune:" not in text
    assert "time left: at least 13 min" in text  # what it took last time


def test_durations_are_in_the_unit_that_a_person_would_use() -> None:
    assert [duration(each) for each in (0.4, 119, 121, 7199, 7300)] == [
        "0 s",
        "119 s",
        "2 min",
        "120 min",
        "2.0 h",
    ]


def test_a_terminal_follows_a_run_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(store=str(tmp_path))
    status = RunStatus(settings.work, "here", "demo", {"images": None})
    status.begin("images")
    looks: list[int] = []

    def wait(seconds: float) -> None:
        looks.append(round(seconds))
        if len(looks) == 2:
            status.remove()

    monkeypatch.setattr(watch.time, "sleep", wait)
    monkeypatch.setattr(watch.sys.stdout, "isatty", lambda: True, raising=False)
    watch.watch_run(settings, once=False)
    said = capsys.readouterr().out
    assert looks == [1, 1]
    assert "images" in said
    assert said.endswith("the run has ended: `phivision runs` lists it if it has finished\n")
    watch.watch_run(settings, once=False)
    assert "no run is at work" in capsys.readouterr().out
