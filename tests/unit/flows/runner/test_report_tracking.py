"""Weights & Biases keeps a run's report, and its failure stops nothing."""

import json
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from flows.runner.report_attach import wandb_report
from pipeline.catalog.catalog import Catalog
from pipeline.settings import Settings
from pipeline.training.observers.tracking import RunReport, log_report
from storage.store.runs import read_runs
from tests.support.small_store import build_store

PAGE = "<!doctype html><title>a report</title>"
REPORT = RunReport(
    name="report-abc",
    page=PAGE,
    place="file:///store/reports/abc.html",
    scores={"cider_d_real": 0.5},
    columns=["image", "real"],
    rows=[[Image.new("RGB", (8, 8), "red"), "a red wall"], [None, "lost"]],
)


def keep(folder: Path, mode: Literal["offline", "online", "disabled"]) -> list[str]:
    """Log a report and return what was said."""
    said: list[str] = []
    settings = Settings(store=str(folder / "store"), workdir=folder / "work", wandb=mode)
    log_report(settings, REPORT, said.append)
    return said


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_the_page_is_kept_on_this_machine(
    tmp_path: Path, mode: Literal["offline", "online"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)  # without a key, online stays offline
    assert keep(tmp_path, mode) == []
    (run,) = (tmp_path / "work/wandb/wandb").glob("offline-run-*-report-abc")
    (page,) = run.rglob("*.html")
    assert page.read_text() == PAGE
    (table,) = run.rglob("*.table.json")
    kept = json.loads(table.read_text())
    assert kept["columns"] == ["image", "real"]
    assert [row[1] for row in kept["data"]] == ["a red wall", "lost"]
    assert [row[0] for row in kept["data"]] == ["Image", None]


def test_generations_stand_beside_what_people_wrote(tmp_path: Path) -> None:
    store = build_store(tmp_path)
    run = read_runs(store)[0]["run"]
    report = wandb_report(Catalog(store, run), run, PAGE, "place")
    assert report.columns[:4] == ("image", "kind", "question", "people wrote")
    assert report.columns[4:] == ("real", "shuffled", "blind")
    assert {row[1] for row in report.rows} == {"caption", "answer"}
    for image, kind, question, people, real, *_ in report.rows:
        assert isinstance(image, Image.Image)
        assert bool(question) == (kind == "answer")
        assert people
        assert isinstance(real, str)
    assert "cider_d_real" in report.scores


def test_disabled_leaves_nothing(tmp_path: Path) -> None:
    assert keep(tmp_path, "disabled") == []
    assert not (tmp_path / "work").exists()


def test_a_failure_is_told_and_goes_no_further(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/wandb").write_text("a file where wandb wants a folder")
    (said,) = keep(tmp_path, "offline")
    assert "wandb cannot keep the report" in said
    assert "going on" in said
