"""Weights & Biases keeps a run's report, and its failure stops nothing."""

from pathlib import Path
from typing import Literal

import pytest

from pipeline.settings import Settings
from pipeline.training.observers.tracking import log_page

PAGE = "<!doctype html><title>a report</title>"


def keep(folder: Path, mode: Literal["offline", "online", "disabled"]) -> list[str]:
    """Log a page and return what was said."""
    said: list[str] = []
    settings = Settings(store=str(folder / "store"), workdir=folder / "work", wandb=mode)
    log_page(settings, "report-abc", PAGE, said.append)
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


def test_disabled_leaves_nothing(tmp_path: Path) -> None:
    assert keep(tmp_path, "disabled") == []
    assert not (tmp_path / "work").exists()


def test_a_failure_is_told_and_goes_no_further(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/wandb").write_text("a file where wandb wants a folder")
    (said,) = keep(tmp_path, "offline")
    assert "wandb cannot keep the report" in said
    assert "going on" in said
