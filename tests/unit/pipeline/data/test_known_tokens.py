"""Texts that were tokenized before, by a killed run or for an earlier artifact, are not again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.tiny_phi import train_tokenizer
from model.word_tokenizer import WordTokenizer
from pipeline.data import example_pieces, known_tokens
from pipeline.data import examples as stage
from pipeline.data.examples import examples
from pipeline.data.known_tokens import Fitted, KnownTokens
from pipeline.data.schemas import CAPTIONS, CONVERSATIONS
from pipeline.engine.stage import InputArtifact
from pipeline.recipe.parts import ExamplesPart
from pipeline.recipe.presets import preset
from storage import tables
from storage.tables import TableWriter, read_table, write_table
from tests.support.training_inputs import context_of, files_of
from tests.unit.pipeline.data.test_examples import COUNT, write_dataset

ROOT = Path(__file__).resolve().parents[4]
# The part of the recipe, so that no example is dropped for its length.
PART = preset("demo").override({"examples.max_tokens": 500, "examples.max_turns": 9}).examples
FILES = ("examples", "questions", "drops", "token_keys")
Captions = Mapping[int, str]
Talks = Mapping[int, tuple[str, ...]]

words = st.sampled_from(["a red square", "A circle there.", "two ovals and a box", "ÄÖÜ ß 字 here"])
numbers = st.integers(COUNT, COUNT + 9)
talks = st.lists(words, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0)


class Encoded:
    """Counts what is really given to a tokenizer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        encode = WordTokenizer.encode

        def counted(tokenizer: WordTokenizer, text: str, **options: Any) -> Any:
            self.texts.append(text)
            return encode(tokenizer, text, **options)

        monkeypatch.setattr(WordTokenizer, "encode", counted)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Encoded:
    return Encoded(monkeypatch)


@pytest.fixture
def inputs(tmp_path: Path, tiny_bundle: Path) -> Path:
    return write_inputs(tmp_path / "in", tiny_bundle)


def write_inputs(root: Path, tiny_bundle: Path) -> Path:
    """Write a dataset in which every text differs from all others, and return its folder."""
    write_dataset(root, tiny_bundle, range(COUNT))
    add(root, {}, {number: talk_of(number) for number in range(COUNT)})
    return root


def talk_of(number: int) -> tuple[str, ...]:
    return tuple(f"{text} {number}" for text in ("What is it?", "A box.", "And here?", "An oval."))


def add(root: Path, captions: Captions, spoken: Talks) -> None:
    """Set captions and conversations by their number, each about one of the images."""
    path = root / "images/captions.parquet"
    kept = [row for row in read_table(path).to_pylist() if row["caption_id"] not in captions]
    more = [
        {"caption_id": number, "image_id": number % COUNT, "caption": text}
        for number, text in captions.items()
    ]
    write_table(path, [*kept, *more], CAPTIONS)
    path = root / "conversations/conversations.parquet"
    talk = [row for row in read_table(path).to_pylist() if row["conversation_id"] not in spoken]
    for number, texts in spoken.items():
        said = [f"<image>\n{texts[0]}", *texts[1:]]
        talk.append(
            {
                "conversation_id": number,
                "record_id": str(number),
                "image_name": f"{number % COUNT}.jpg",
                "more_images": [],
                "turns": [
                    {"speaker": "gpt" if at % 2 else "human", "text": text}
                    for at, text in enumerate(said)
                ],
            }
        )
    write_table(path, sorted(talk, key=lambda row: row["conversation_id"]), CONVERSATIONS)


def make(
    root: Path, work: Path, *earlier: Path | InputArtifact, part: ExamplesPart = PART
) -> dict[str, Any]:
    """Run the stage, with the outputs of earlier runs, and return its summary."""
    shutil.rmtree(work / "out", ignore_errors=True)  # as the workspace does for a resumed run
    known = [files_of(each / "out") if isinstance(each, Path) else each for each in earlier]
    return dict(examples(replace(context_of(root, work), earlier=lambda: known), part, 0))


def content(work: Path) -> dict[str, bytes]:
    return {name: (work / f"out/{name}.parquet").read_bytes() for name in FILES}


def test_one_more_batch_of_conversations_tokenizes_just_that(
    inputs: Path, tmp_path: Path, encoded: Encoded
) -> None:
    assert make(inputs, tmp_path / "before")["tokenized"] == 2 * COUNT
    encoded.texts.clear()
    assert make(inputs, tmp_path / "same", tmp_path / "before")["tokenized"] == 0
    assert encoded.texts == []
    add(inputs, {}, {number: talk_of(number) for number in range(COUNT, COUNT + 5)})
    summary = make(inputs, tmp_path / "more", tmp_path / "before")
    assert summary["tokenized"] == 5
    assert all(any(str(n) in text for n in range(COUNT, COUNT + 5)) for text in encoded.texts)
    assert {**make(inputs, tmp_path / "alone"), "tokenized": 5} == summary
    assert content(tmp_path / "more") == content(tmp_path / "alone")


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    before=st.tuples(st.dictionaries(numbers, words), st.dictionaries(numbers, talks)),
    after=st.tuples(st.dictionaries(numbers, words), st.dictionaries(numbers, talks)),
    group=st.sampled_from([2, 65_536]),
)
def test_what_is_reused_changes_no_byte(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_bundle: Path,
    before: tuple[Captions, Talks],
    after: tuple[Captions, Talks],
    group: int,
) -> None:
    work = tmp_path_factory.mktemp("known")
    for name, changes in (("before", before), ("after", after)):
        write_dataset(work / name, tiny_bundle, range(COUNT))
        add(work / name, *changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ROW_GROUP", group)
        patch.setattr(known_tokens, "ROW_GROUP", group)
        patch.setattr(stage, "_CAPTIONS_AT_ONCE", 5)
        patch.setattr(stage, "_TALKS_AT_ONCE", 5)
        make(work / "before", work / "first")
        made = make(work / "after", work / "grown", work / "first")
        alone = make(work / "after", work / "alone")
    assert content(work / "grown") == content(work / "alone")
    assert made == alone | {"tokenized": made["tokenized"]}
    shared = _contents(work / "after") - _contents(work / "before")
    assert made["tokenized"] <= len(shared)


def _contents(root: Path) -> set[str]:
    """Return captions and conversations, each with its image."""
    captions = read_table(root / "images/captions.parquet").to_pylist()
    spoken = read_table(root / "conversations/conversations.parquet").to_pylist()
    return {json.dumps([row["image_id"], row["caption"]]) for row in captions} | {
        json.dumps([row["image_name"], row["turns"]]) for row in spoken
    }


class Died(BaseException):
    """The process is gone: nothing may catch this."""


class Dying:
    """Ends the stage at one call of what encodes or writes, and notes what was kept before.

    Attributes:
        left: Calls until the end.
        late: Whether the last call still does its work.
        kept: Keys of tokens that were kept.
    """

    def __init__(self, patch: pytest.MonkeyPatch, left: int, *, late: bool) -> None:
        self.left, self.late, self.kept = left, late, []
        for owner, name in ((example_pieces, "make_tokens"), (TableWriter, "write")):
            patch.setattr(owner, name, self._wrap(getattr(owner, name)))
        patch.setattr(TableWriter, "__exit__", self._wrap(TableWriter.__exit__))
        keep = KnownTokens.keep

        def noting(known: KnownTokens, made: Mapping[bytes, Fitted]) -> None:
            keep(known, made)
            self.kept += made

        patch.setattr(KnownTokens, "keep", noting)

    def _wrap(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.left -= 1
            if self.left > 0:
                return method(*arguments)
            if self.left == 0 and self.late:
                method(*arguments)
            raise Died

        return call


@pytest.mark.timeout(600)
@pytest.mark.parametrize("late", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_whenever_it_dies_nothing_that_was_kept_is_tokenized_again(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    monkeypatch.setattr(stage, "_CAPTIONS_AT_ONCE", COUNT)
    monkeypatch.setattr(stage, "_TALKS_AT_ONCE", COUNT)
    whole = make(inputs, tmp_path / "whole")
    expected = content(tmp_path / "whole")
    assert len(list((tmp_path / "whole/scratch").rglob("piece-*"))) == 2
    for left in count(1):
        work = tmp_path / f"dies-{left}"
        with monkeypatch.context() as patch:
            died = Dying(patch, left, late=late)
            try:
                make(inputs, work)
            except Died:
                pass
            else:
                break
        with monkeypatch.context() as patch:
            rest = Dying(patch, 10**6, late=False)
            summary = make(inputs, work)
        assert summary == whole | {"tokenized": len(rest.kept)}
        # A call that died after its work may have left tokens that it could not report.
        assert not set(died.kept) & set(rest.kept)
        assert len(died.kept) + len(rest.kept) >= whole["tokenized"] - COUNT * late
        assert content(work) == expected
        shutil.rmtree(work)
    assert left > 15


_KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.data import example_pieces
from pipeline.data import examples as stage
from pipeline.data.known_tokens import KnownTokens
from tests.unit.pipeline.data.test_known_tokens import make
stage._CAPTIONS_AT_ONCE = stage._TALKS_AT_ONCE = 4
keep, left = KnownTokens.keep, [int(sys.argv[3])]
def dying(known, made):
    keep(known, made)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
KnownTokens.keep = dying
make(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_process_leaves_its_tokens_to_the_next(inputs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(inputs), str(tmp_path / "killed"), "3"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, check=False)
    assert done.returncode == -signal.SIGKILL
    alone = make(inputs, tmp_path / "alone")
    summary = make(inputs, tmp_path / "killed")
    assert summary == alone | {"tokenized": alone["tokenized"] - 3 * 4}
    assert content(tmp_path / "killed") == content(tmp_path / "alone")


def _another_tokenizer(inputs: Path) -> ExamplesPart:
    train_tokenizer(["boxes and ovals, here"], 300, inputs / "backbones/lm")
    return PART


def _another_prefix(inputs: Path) -> ExamplesPart:
    del inputs
    return PART.model_copy(update={"user_prefix": "Q: "})


def _another_caption_question(inputs: Path) -> ExamplesPart:
    del inputs
    return PART.model_copy(update={"caption_question": "What is there?"})


@pytest.mark.parametrize("change", [_another_tokenizer, _another_prefix, _another_caption_question])
def test_tokens_of_another_template_are_not_taken(
    inputs: Path, tmp_path: Path, change: Callable[[Path], ExamplesPart]
) -> None:
    make(inputs, tmp_path / "before")
    part = change(inputs)
    summary = make(inputs, tmp_path / "after", tmp_path / "before", part=part)
    assert summary["tokenized"] == 2 * COUNT
    assert make(inputs, tmp_path / "alone", part=part) == summary
    assert content(tmp_path / "after") == content(tmp_path / "alone")


@pytest.mark.parametrize(("field", "again"), [("max_tokens", COUNT), ("max_turns", COUNT)])
def test_another_limit_of_conversations_leaves_captions_known(
    inputs: Path, tmp_path: Path, field: str, again: int
) -> None:
    make(inputs, tmp_path / "before")
    part = PART.model_copy(update={field: 40 if field == "max_tokens" else 1})
    summary = make(inputs, tmp_path / "after", tmp_path / "before", part=part)
    assert summary["tokenized"] == again
    assert {**make(inputs, tmp_path / "alone", part=part), "tokenized": again} == summary
    assert content(tmp_path / "after") == content(tmp_path / "alone")


def test_the_newest_artifacts_of_the_template_are_read_as_far_as_they_are_needed(
    inputs: Path, tmp_path: Path
) -> None:
    make(inputs, tmp_path / "large")
    small = tmp_path / "small-in"
    shutil.copytree(inputs, small)
    for table, schema in (
        ("images/captions", CAPTIONS),
        ("conversations/conversations", CONVERSATIONS),
    ):
        rows = read_table(small / f"{table}.parquet").to_pylist()
        write_table(small / f"{table}.parquet", [rows[0], *rows[8:]], schema)
    make(small, tmp_path / "small")
    make(inputs, tmp_path / "other", part=_another_prefix(inputs))
    before = [tmp_path / "other", tmp_path / "small", tmp_path / "large"]
    assert make(inputs, tmp_path / "after", *before)["tokenized"] == 0

    unread = files_of(tmp_path / "small/out")
    shutil.rmtree(tmp_path / "small/out")
    assert make(inputs, tmp_path / "again", tmp_path / "large", unread)["tokenized"] == 0


def test_tokens_of_another_version_of_the_library_are_not_taken(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(inputs, tmp_path / "before")
    known = files_of(tmp_path / "before/out")
    monkeypatch.setattr(type(known), "packages", {"tokenizers": "0.1"})
    assert make(inputs, tmp_path / "after", known)["tokenized"] == 2 * COUNT
    monkeypatch.setattr(known_tokens, "version", lambda _: "0.1")
    assert make(inputs, tmp_path / "third", known)["tokenized"] == 0
    assert make(inputs, tmp_path / "after")["tokenized"] == 2 * COUNT  # its scratch is older
