"""The stage `examples` as a whole: readable texts, and refusals before any training."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from model.errors import ModelError
from model.prompt import PromptTemplate
from pipeline.data.examples import examples
from pipeline.data.schemas import CAPTIONS, CONVERSATIONS, DROPS, IMAGES
from pipeline.errors import PipelineError, RecipeError
from pipeline.recipe.presets import preset
from storage.tables import read_table, write_table
from tests.support.training_inputs import context_of
from tests.unit.model.test_chat_template import FAMILIES, saved

COUNT = 12
TALK = [("Is it red?", "Yes."), ("How many?", "Three."), ("Which shape?", "A square.")]


def write_dataset(root: Path, tiny_bundle: Path, spoken: range, answer: str = "Yes.") -> None:
    """Write images with a caption each: 8 to train on, 2 to validate, 2 to test with."""
    shutil.copytree(tiny_bundle / "lm", root / "backbones/lm")
    images = [
        {
            "image_id": number,
            "split": "train" if number < 8 else "validation" if number < 10 else "test",
            "source": "folder",
            "origin": "val2017" if number > 9 else "train2017",
            "file_name": f"{number}.jpg",
            "sha256": sha256(str(number).encode()).hexdigest(),
            "bytes": 9,
            "width": 64,
            "height": 48,
            "url": "",
        }
        for number in range(COUNT)
    ]
    captions = [
        {"caption_id": number, "image_id": number, "caption": f"A square and {number} others."}
        for number in range(COUNT)
    ]
    turns = [
        {"speaker": speaker, "text": text}
        for question, said in [("<image>\nIs it red?", answer), *TALK[1:]]
        for speaker, text in (("human", question), ("gpt", said))
    ]
    talk = [
        {
            "conversation_id": n,
            "record_id": str(n),
            "image_name": f"{n}.jpg",
            "more_images": [],
            "turns": turns,
        }
        for n in spoken
    ]
    write_table(root / "images/images.parquet", images, IMAGES)
    write_table(root / "images/captions.parquet", captions, CAPTIONS)
    write_table(root / "images/drops.parquet", [], DROPS)
    write_table(root / "conversations/conversations.parquet", talk, CONVERSATIONS)


def test_the_turns_of_a_conversation_can_be_told_apart(tmp_path: Path, tiny_bundle: Path) -> None:
    write_dataset(tmp_path / "in", tiny_bundle, range(COUNT))
    part = preset("demo").override({"examples.max_turns": 9, "examples.max_tokens": 500}).examples
    context = context_of(tmp_path / "in", tmp_path / "work")
    examples(context, part, 0)
    rows = read_table(context.out / "examples.parquet").to_pylist()
    texts = {row["text"] for row in rows if row["kind"] == "conversation"}
    assert texts == {"\n".join(f"{asked}\n {said}" for asked, said in TALK)}


def test_a_validation_split_without_talk_is_refused_with_a_share_that_has_some(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    write_dataset(tmp_path / "in", tiny_bundle, range(8))
    context = context_of(tmp_path / "in", tmp_path / "work")
    with pytest.raises(PipelineError, match="no conversation is about a validation image") as say:
        examples(context, preset("demo").examples, 0)
    assert "8 training images" in str(say.value)
    assert "images.validation_share=0.5" in str(say.value)


def test_if_nothing_is_left_the_reasons_are_told(tmp_path: Path, tiny_bundle: Path) -> None:
    write_dataset(tmp_path / "in", tiny_bundle, range(COUNT), answer="See the bounding box.")
    context = context_of(tmp_path / "in", tmp_path / "work")
    with pytest.raises(PipelineError, match="12 speaks of captions or boxes"):
        examples(context, preset("demo").examples, 0)


def test_a_language_model_is_asked_in_its_own_chat_template(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    write_dataset(tmp_path / "in", tiny_bundle, range(COUNT))
    auto = preset("demo").override({"examples.template": "auto", "examples.max_tokens": 500})
    found = {}
    for name in ("plain", "chatml"):
        if name == "chatml":
            saved(tmp_path / "in/backbones/lm", *FAMILIES["chatml"])
        context = context_of(tmp_path / "in", tmp_path / name)
        examples(context, auto.examples, 0)
        found[name] = json.loads((context.out / "template.json").read_text())
    assert found["plain"]["user_prefix"] == auto.examples.user_prefix
    assert found["chatml"]["opening"].endswith("<|im_start|>user\n")
    template = PromptTemplate.load(tmp_path / "in/backbones/lm", **found["chatml"])
    rows = read_table(tmp_path / "chatml/out/examples.parquet").to_pylist()
    talk = next(row for row in rows if row["kind"] == "conversation")
    turns = auto.examples.max_turns
    assert talk["input_ids"] == template.conversation(TALK[:turns]).input_ids


def test_a_template_that_cannot_be_used_is_told(tmp_path: Path, tiny_bundle: Path) -> None:
    write_dataset(tmp_path / "in", tiny_bundle, range(COUNT))
    part = preset("demo").override({"examples.template": "{{ messages[0].content }}"}).examples
    with pytest.raises(ModelError, match="leaves out or changes the text of a message"):
        examples(context_of(tmp_path / "in", tmp_path / "work"), part, 0)
    with pytest.raises(RecipeError, match="neither plain nor auto"):
        preset("demo").override({"examples.template": "chatml"})


@pytest.mark.parametrize("size", [1, 5])
def test_the_files_do_not_depend_on_how_many_texts_are_made_at_once(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    write_dataset(tmp_path / "in", tiny_bundle, range(COUNT))
    path = tmp_path / "in/images/captions.parquet"
    captions = read_table(path).to_pylist()
    more = ["A square  and 3 others.", "word", "a circle", "SHOUTED AT US", "no image here"]
    extra = [
        {"caption_id": 100 - at, "image_id": 3 if at < 4 else 404, "caption": text}
        for at, text in enumerate(more)
    ]
    write_table(path, [*extra, *captions], CAPTIONS)  # not in the order of their ids
    path = tmp_path / "in/conversations/conversations.parquet"
    talk = read_table(path).to_pylist()
    again = [{**talk[1], "conversation_id": 90}, {**talk[2], "conversation_id": 91}]
    write_table(path, [*talk, *again], CONVERSATIONS)
    filters = {"shouting": "text = upper(text)", "five": "image_id = 5"}
    part = preset("demo").examples.model_copy(update={"filters": filters, "max_tokens": 500})
    whole = context_of(tmp_path / "in", tmp_path / "whole")
    summary = examples(whole, part, 0)
    for name in ("_CAPTIONS_AT_ONCE", "_TALKS_AT_ONCE", "CONVERSATIONS_AT_ONCE"):
        monkeypatch.setattr(f"pipeline.data.examples.{name}", size)
    pieces = context_of(tmp_path / "in", tmp_path / "pieces")
    assert examples(pieces, part, 0) == summary
    for name in ("examples", "questions", "drops"):
        file = f"{name}.parquet"
        assert (pieces.out / file).read_bytes() == (whole.out / file).read_bytes()
    drops = read_table(pieces.out / "drops.parquet").to_pylist()
    told = [(row["kind"], row["record"], row["reason"]) for row in drops]
    assert told == [
        ("caption", "96", "image missing"),
        ("caption", "99", "too few words"),
        ("caption", "100", "duplicate"),
        ("conversation", "90", "duplicate"),
        ("conversation", "91", "duplicate"),
        ("caption", "5", "five"),
        ("caption", "97", "shouting"),
        ("conversation", "5", "five"),
    ]
