"""The commands that look after a store: verify, gc, diff, tag, accept."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from flows.cli import main
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.runs import read_refs, read_runs
from tests.support.fake_stages import make
from tests.support.store_fixtures import flip

DEMO = preset("demo")


@pytest.fixture
def done(tmp_path: Path) -> ArtifactStore:
    """A store with two finished runs of the fake stages, the second with another seed."""
    settings = Settings(store=str(tmp_path / "store"))
    store = ArtifactStore(settings.store, settings.work / "cache")
    make(store, settings, DEMO)
    make(store, settings, DEMO.override({"seed": 7}))
    return store


def ask(
    capsys: pytest.CaptureFixture[str], store: ArtifactStore, *arguments: str, status: int = 0
) -> str:
    """Run a command and return what it printed, on either stream."""
    with pytest.raises(SystemExit) if status else nullcontext() as end:
        main([*arguments, "--store", store.uri])
    assert not status or end.value.code == status
    text = "".join(capsys.readouterr())
    return "\n".join(re.sub(" +", " ", line).strip() for line in text.splitlines())


def test_verify_names_what_is_damaged_and_fails(
    done: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "6 artifacts, 0.0 MB: every file is as committed" in ask(capsys, done, "verify")
    made = done.manifests("numbers")[0]
    for shard in range(5):
        flip(done, f"{made.folder}/{shard}.txt")
    text = ask(capsys, done, "verify", status=1)
    assert f"numbers {made.fingerprint[:12]} 0.txt altered; 1.txt altered" in text
    assert "1 of 6 artifacts are damaged" in text
    assert "`phivision run` with the recipe that made them makes only those again" in text
    assert "numbers" in ask(capsys, done, "verify", status=1)


def test_an_empty_place_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = ArtifactStore(str(tmp_path / "empty"), tmp_path / "cache")
    assert "no artifact is in" in ask(capsys, empty, "verify", status=1)
    assert "no run has finished in" in ask(capsys, empty, "runs")


def test_gc_tells_before_it_removes(
    done: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing to remove in" in ask(capsys, done, "gc", "--keep", "1")
    options = ("gc", "--keep", "1", "--days", "0")
    text = ask(capsys, done, *options, "--dry-run")
    assert text.count("manifest ") == text.count("attempt ") == 3
    assert f"6 items, 0.0 MB, would be removed from {done.uri}" in text
    assert len(done.manifests("sums")) == 2
    ask(capsys, done, *options)
    assert len(done.manifests("sums")) == 1
    assert "nothing to remove" in ask(capsys, done, *options)
    assert "every file" in ask(capsys, done, "verify")


def test_gc_beside_a_running_pipeline_says_that_it_holds_back(
    done: ArtifactStore, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from filelock import FileLock

    lock = tmp_path / "store" / "work" / "locks" / "pretrain-0000000000000000.lock"
    with FileLock(lock):
        text = ask(capsys, done, "gc", "--keep", "1", "--days", "0")
    assert "a pipeline is running: what was used in the last 7 days stays" in text
    assert "nothing to remove" in text


def test_a_tag_keeps_its_run(done: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    old = read_runs(done)[1]["run"]
    assert f"paper is now run {old}" in ask(capsys, done, "tag", "paper", old[:7])
    assert read_refs(done)["paper"] == old
    assert "nothing to remove" in ask(capsys, done, "gc", "--keep", "1", "--days", "0")
    for name in ("latest", "../x", "a b"):
        assert "cannot name a run" in ask(capsys, done, "tag", name, status=1)


def test_diff_shows_fields_and_digests(
    done: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = (record["run"] for record in read_runs(done))
    text = ask(capsys, done, "diff", old)
    assert "field seed 0 7" in text
    assert "digest numbers" in text
    assert f"{new} and latest do not differ" in ask(capsys, done, "diff", new, "latest")
    assert "0 runs match 'zz'" in ask(capsys, done, "diff", "zz", status=1)


def test_accept_needs_something_to_adopt(
    done: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "name a stage, or give --all" in ask(capsys, done, "accept", status=1)
    assert "name a stage" in ask(capsys, done, "accept", "images", "--all", status=1)
    assert "images has no intact artifact" in ask(capsys, done, "accept", "--all", status=1)
    assert "images has no intact artifact" in ask(capsys, done, "accept", "images", status=1)
    assert "there is no stage 'imges'" in ask(capsys, done, "accept", "imges", status=1)
