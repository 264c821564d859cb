"""Examples made by other processes: the same files, whatever died or was known before."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import example_pieces
from pipeline.data import examples as stage
from pipeline.data.schemas import CAPTIONS
from pipeline.engine.stage import FanOut
from storage.tables import read_table, write_table
from tests.support.fan_outs import Backwards
from tests.support.training_inputs import context_of, files_of
from tests.unit.pipeline.data.test_examples import COUNT
from tests.unit.pipeline.data.test_known_tokens import PART, add, content, talk_of, write_inputs

FILTERED = PART.model_copy(update={"filters": {"shouting": "text = upper(text)"}})
BAD = ["word", "SHOUTED AT US", "no image here", "A square and 3 others."]


@pytest.fixture
def inputs(tmp_path: Path, tiny_bundle: Path) -> Path:
    """Write captions and conversations of which some are dropped, for every kind of reason."""
    root = write_inputs(tmp_path / "in", tiny_bundle)
    path = root / "images/captions.parquet"
    bad = [
        {"caption_id": 100 + at, "image_id": 404 if at == 2 else 3, "caption": text}
        for at, text in enumerate(BAD)
    ]
    write_table(path, [*read_table(path).to_pylist(), *bad], CAPTIONS)
    return root


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_SPREAD", 0)
    monkeypatch.setattr(stage, "_CAPTIONS_AT_ONCE", 5)
    monkeypatch.setattr(stage, "_TALKS_AT_ONCE", 5)


def make(
    root: Path, work: Path, fan_out: FanOut | None = None, earlier: Sequence[Path] = ()
) -> dict[str, Any]:
    """Run the stage, as one more process would, and return its summary."""
    shutil.rmtree(work / "out", ignore_errors=True)
    example_pieces._MAKERS._latest = None
    known = [files_of(each / "out") for each in earlier]
    context = replace(context_of(root, work), earlier=lambda: known, fan_out=fan_out)
    return dict(stage.examples(context, FILTERED, 0))


def test_spread_pieces_give_the_same_files(inputs: Path, tmp_path: Path) -> None:
    spread = Backwards()
    alone = make(inputs, tmp_path / "alone")
    assert make(inputs, tmp_path / "spread", spread) == alone
    assert content(tmp_path / "spread") == content(tmp_path / "alone")
    assert spread.done == [6, 5, 4, 3, 2, 1, 0]
    assert sorted(alone["dropped"]) == ["duplicate", "image missing", "shouting", "too few words"]


def test_a_killed_run_makes_only_what_is_left(inputs: Path, tmp_path: Path) -> None:
    def die(job: Any) -> None:
        if job.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(inputs, tmp_path / "spread", Backwards(die))
    damaged = tmp_path / "spread/scratch/made-000004/keys.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    again = Backwards()
    assert make(inputs, tmp_path / "spread", again) == make(inputs, tmp_path / "alone")
    assert content(tmp_path / "spread") == content(tmp_path / "alone")
    assert again.done == [4, 2, 1, 0]


def test_other_processes_know_the_tokens_of_earlier_artifacts(inputs: Path, tmp_path: Path) -> None:
    make(inputs, tmp_path / "before")
    add(inputs, {}, {number: talk_of(number) for number in range(COUNT, COUNT + 4)})
    grown = make(inputs, tmp_path / "grown", Backwards(), [tmp_path / "before"])
    alone = make(inputs, tmp_path / "alone")
    assert content(tmp_path / "grown") == content(tmp_path / "alone")
    # The four, and a caption that was made and then dropped, so that it is in no artifact.
    assert grown == alone | {"tokenized": 5}


def test_a_piece_that_two_processes_make_is_used_once(inputs: Path, tmp_path: Path) -> None:
    class Twice(Backwards):
        def __call__(self, function: Any, jobs: Sequence[Any]) -> Iterator[int]:
            for number in super().__call__(function, [*jobs, *jobs]):
                if self.done.count(number) == 1:
                    yield number

    assert make(inputs, tmp_path / "spread", Twice()) == make(inputs, tmp_path / "alone")
    assert content(tmp_path / "spread") == content(tmp_path / "alone")
    assert list((tmp_path / "spread/scratch").glob("*.part")) == []


def test_few_texts_are_not_worth_other_processes(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_SPREAD", 1000)
    spread = Backwards()
    make(inputs, tmp_path / "few", spread)
    assert spread.done == []
