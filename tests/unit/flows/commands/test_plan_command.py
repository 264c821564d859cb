"""What `phivision plan` prints of a store with a finished run, within 80 columns."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from flows.commands import plan as command
from pipeline.costs.stage_seconds import Forecast
from pipeline.engine.plan import Step
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from tests.support.small_store import build_store

MACHINE = {"device": "cpu", "threads": "2"}
TOOK = {"images": 0.0, "finetune": 1100.0, "evaluate": 21.0, "publish": None}


@pytest.fixture
def printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Print a plan with a given forecast."""
    store: ArtifactStore = build_store(tmp_path, runs=1)
    (manifest,) = store.manifests("images")
    steps = [
        Step("images", "fresh", "", manifest),
        Step("finetune", "stale", "field `finetune.epochs` 6.0 → 3.0; code changed: `a/b.py`"),
        Step("evaluate", "unknown", "depends on finetune"),
        Step("publish", "unknown", "depends on finetune, evaluate"),
    ]
    monkeypatch.setenv("COLUMNS", "80")

    def show(style: Any, seconds: dict[str, float | None]) -> str:
        monkeypatch.setattr(command, "plan", lambda *_: steps)
        monkeypatch.setattr(command, "forecast", lambda *_: Forecast(seconds, MACHINE))
        command.print_plan(preset("demo"), Settings(store=str(tmp_path / "store")), [], style)
        return capsys.readouterr().out

    return show


def test_a_table_says_what_each_stage_and_all_will_take(printed: Any) -> None:
    text = printed("table", TOOK)
    assert all(len(line) <= 80 for line in text.splitlines())
    cells = {line.split()[0]: line.split() for line in text.splitlines()}
    assert cells["images"] == ["images", "fresh"]
    assert cells["finetune"][1:4] == ["stale", "18", "min"]
    assert cells["evaluate"][1:4] == ["unknown", "21", "s"]
    assert cells["publish"][1:3] == ["unknown", "unknown"]
    end = " ".join(text[text.index("→ at") :].split())
    assert end.startswith("→ at least 19 min without publish, going by earlier artifacts on cpu, 2")
    assert end.endswith("; less where an input comes out as before")
    assert "→ about 19 min, going by" in printed("table", {**TOOK, "publish": 1.0})


def test_programs_read_seconds_and_what_was_made(printed: Any) -> None:
    rows = {row["stage"]: row for row in json.loads(printed("json", TOOK))}
    assert [row["seconds"] for row in rows.values()] == [0.0, 1100.0, 21.0, None]
    made = rows["images"]["made"]
    assert made["seconds"] == 2.5
    assert made["bytes"] > 1000
    assert len(made["digest"]) == 64
    assert [rows[name]["made"] for name in ("finetune", "publish")] == [None, None]


def test_a_store_of_another_version_is_planned_without_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_store(tmp_path, runs=1)  # its manifests hold no recipe
    main(["plan", "--store", str(tmp_path / "store"), "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    assert {row["seconds"] for row in rows} == {None}
