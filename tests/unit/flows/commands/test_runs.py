"""`runs` and `diff`: which run was when, how it scored, and what made the difference."""

import json
from pathlib import Path

import pytest

from flows.cli import main
from flows.commands.runs import _cell
from storage.store.artifacts import ArtifactStore
from storage.store.published import add_entry, read_history
from storage.store.runs import read_runs, write_ref
from tests.support.small_store import build_store

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """A store with two runs, of which the second is the better one."""
    found = build_store(tmp_path_factory.mktemp("runs"))
    new, old = (record["run"] for record in read_runs(found))
    write_ref(found, "paper", old)
    for action, run in (("published", old), ("refused", new)):
        history = read_history(found)
        parts = {"fingerprint": "f" * 64, "digest": "d" * 64, "reason": "", "against": ""}
        add_entry(found, history, action=action, run=run, **parts)
    return found


def ask(capsys: Output, store: ArtifactStore, *arguments: str, status: int = 0) -> str:
    ended = 0
    try:
        main([*arguments, "--store", store.uri])
    except SystemExit as exit_:
        ended = exit_.code
    assert ended == status
    said = capsys.readouterr()
    return said.err if status else said.out


def test_runs_fit_a_terminal_and_tell_scores_decisions_and_tags(
    store: ArtifactStore, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    new, old = (record["run"] for record in read_runs(store))
    text = ask(capsys, store, "runs")
    assert text.index("latest") < text.index(old)
    _, *lines = [line for line in text.splitlines() if line.strip()]
    first, second = (next(line for line in lines if line.startswith(run)) for run in (new, old))
    assert lines.index(first) < lines.index(second)
    assert "3.000" in first
    assert "refused" in first
    assert "7 stages" in first
    assert "in use" in second
    assert "paper" in text
    assert len(lines) <= 5  # two of headings; no line is broken over more than two


def test_runs_as_json_have_every_metric_of_the_finetuned_model(
    store: ArtifactStore, capsys: Output
) -> None:
    found = json.loads(ask(capsys, store, "runs", "--format", "json"))
    assert [row["metrics"]["cider_d"] for row in found] == pytest.approx([3.0, 8 / 3])
    assert [row["decision"] for row in found] == ["refused", "in use"]
    assert [row["tags"] for row in found] == [["latest"], ["paper"]]


def test_the_best_run_comes_first_and_others_are_counted(
    store: ArtifactStore, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    best = read_runs(store)[0]["run"]
    text = ask(capsys, store, "runs", "--sort", "cider_d", "--limit", "1")
    assert best in text
    assert "1 more: --limit 2" in text
    assert "metrics: answer_accuracy" in ask(capsys, store, "runs", "--sort", "cider", status=1)


def test_a_store_without_runs_gives_an_empty_list(tmp_path: Path, capsys: Output) -> None:
    empty = ArtifactStore(str(tmp_path / "empty"), tmp_path / "cache")
    assert json.loads(ask(capsys, empty, "runs", "--format", "json")) == []


def test_diff_shows_the_main_metrics_with_intervals_and_all_on_demand(
    store: ArtifactStore, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    new, old = (record["run"] for record in read_runs(store))
    text = ask(capsys, store, "diff", old)
    assert "finetune.epochs" in text
    assert "2.6667 [" in text
    assert f"phivision diff {old} latest --all" in text
    assert len(text.splitlines()) < 10
    whole = ask(capsys, store, "diff", old, new, "--all")
    assert "finetune/test/real/cider_d" in whole
    assert len(whole.splitlines()) > 50


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [("field", 0.00025, "0.00025"), ("metric", 4.161e-40, "0.0000"), ("field", "a", "a")],
)
def test_values_of_recipes_are_exact_and_metrics_are_rounded(
    kind: str, value: object, shown: str
) -> None:
    assert str(_cell(kind, value)) == shown
