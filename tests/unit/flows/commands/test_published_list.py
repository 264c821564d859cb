"""`phivision rollback --list`: every decision about what is published, with its reason."""

import json
from pathlib import Path

import pytest

from flows.cli import main
from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.store.published import add_entry, last_number, previous, read_history


def decide(store: ArtifactStore, action: str, run: str, reason: str) -> None:
    add_entry(
        store,
        read_history(store),
        action=action,
        run=run,
        fingerprint="0" * 64,
        digest=run.encode().hex(),
        reason=reason,
        against="",
    )


def test_the_last_decision_is_known_by_its_number(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    assert last_number(store) == 0
    decide(store, "published", "first", "")
    decide(store, "refused", "second", "")
    assert last_number(store) == 2


def test_the_history_is_listed_and_nothing_moves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    command = ["rollback", "--list", "--store", store.uri]
    main(command)
    assert "nothing was ever published" in capsys.readouterr().out
    decide(store, "published", "first", "the image helps")
    decide(store, "forced", "second", "there is no evidence that the model uses the image")
    decide(store, "refused", "third", "cider_d is 0.200 below the published run second")
    main(command)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:]] == ["3", "*", "1"]
    assert [word for line in lines[1:] for word in line if word in ("first", "second", "third")][
        :1
    ] == ["third"]
    assert "forced" in lines[2]
    assert len(read_history(store)) == 3


def test_a_run_published_twice_in_a_row_is_one_step_back(local: ArtifactStore) -> None:
    for run in ("first", "second", "second"):
        decide(local, "forced", run, "")
    before = previous(read_history(local))
    assert before is not None
    assert before.run == "first"


def test_a_note_beside_the_decisions_is_no_decision(local: ArtifactStore) -> None:
    decide(local, "published", "first", "")
    local.write("published/README.md", b"do not touch")
    assert [entry.run for entry in read_history(local)] == ["first"]


@pytest.mark.parametrize("change", [{"number": 7}, {"number": "one"}, {"weight": 1.0}, None])
def test_a_damaged_decision_is_named(
    local: ArtifactStore, change: dict[str, object] | None
) -> None:
    decide(local, "published", "first", "")
    entry = json.loads(local.read("published/000001.json") or b"")
    text = "{" if change is None else json.dumps({**entry, **change})
    local.write("published/000001.json", text.encode())
    with pytest.raises(
        StorageError, match=r"published/000001\.json is not a decision .*\n.*delete"
    ):
        read_history(local)
