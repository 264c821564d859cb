"""Conversations about several images: where each is found, and when a conversation is dropped."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from model.prompt import IMAGE, PromptTemplate
from pipeline.data.examples import examples
from pipeline.data.schemas import CONVERSATIONS
from pipeline.errors import PipelineError
from pipeline.recipe.presets import preset
from storage.tables import read_table, write_arrow, write_table
from tests.support.training_inputs import context_of
from tests.unit.pipeline.data.test_examples import COUNT, write_dataset

Row = dict[str, Any]
Talk = tuple[list[int], list[str]]  # numbers of images; questions and answers


def write_talks(root: Path, bundle: Path, talks: list[Talk]) -> None:
    """Write twelve images (8 train, 2 validation, 2 test) and these conversations."""
    write_dataset(root, bundle, range(COUNT))
    path = root / "conversations/conversations.parquet"
    rows = read_table(path).to_pylist()
    for images, texts in talks:
        number = len(rows)
        names = [f"train2017/{n}.jpg" if n < 10 else f"{n}.jpg" for n in images]
        said = zip(("human", "gpt") * len(texts), texts, strict=False)
        rows.append(
            {
                "conversation_id": number,
                "record_id": str(number),
                "image_name": names[0],
                "more_images": names[1:],
                "turns": [{"speaker": speaker, "text": text} for speaker, text in said],
            }
        )
    write_table(path, rows, CONVERSATIONS)


def made(root: Path, bundle: Path, talks: list[Talk], work: Path) -> dict[str, list[Row]]:
    """Run the stage, and return examples and questions about several images, and the drops."""
    write_talks(root, bundle, talks)
    part = preset("demo").override({"examples.max_turns": 3, "examples.max_tokens": 200}).examples
    context = context_of(root, work)
    examples(context, part, 0)
    tables = ("examples", "questions", "drops")
    found = {name: read_table(context.out / f"{name}.parquet").to_pylist() for name in tables}
    several = [row for row in found["examples"] if row["source_id"] >= COUNT]
    found["examples"] = [row for row in several if row["kind"] == "conversation"]
    ids = {row["example_id"] for row in found["examples"]}
    found["questions"] = [row for row in found["questions"] if row["example_id"] in ids]
    return found


def hashes(root: Path) -> list[str]:
    return read_table(root / "images/images.parquet")["sha256"].to_pylist()


def test_an_example_has_its_images_where_the_text_names_them(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    talk = ["<image><image>\nIs it like <image> here?", "Yes.", "And <image>?", "No."]
    found = made(tmp_path / "in", tiny_bundle, [([3, 1, 5, 0], talk)], tmp_path / "work")
    (row,) = found["examples"]
    keys = hashes(tmp_path / "in")
    assert (row["sha256"], row["more_sha256"]) == (keys[3], [keys[1], keys[5], keys[0]])
    assert row["text"] == "<image> Is it like <image> here?\n Yes.\nAnd <image>?\n No."
    assert row["split"] == "train"
    stored = json.loads((tmp_path / "work/out/template.json").read_text())
    template = PromptTemplate.load(tmp_path / "in/backbones/lm", **stored)
    before, rest = template.encode("Is it like "), template.encode(" here?\n")
    start = [IMAGE, *before, IMAGE, *rest, *template.answer("Yes."), template.eos_id]
    assert row["input_ids"][: len(start)] == start
    assert row["input_ids"].count(IMAGE) == 3
    assert found["questions"] == []


def test_a_question_alone_is_about_the_images_in_front_and_its_own(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    first = ["<image> <image>\nWhich?", "One.", "And <image>?", "No.", "So?", "It is."]
    second = ["Is <image> like <image>?", "Yes.", "Why?", "Both."]
    talks = [([10, 11, 10], first), ([11, 10], second)]
    found = made(tmp_path / "in", tiny_bundle, talks, tmp_path / "work")
    keys = hashes(tmp_path / "in")
    told = [(row["question"], row["more_sha256"]) for row in found["questions"]]
    assert told == [
        ("Which?", [keys[11]]),
        ("And <image>?", [keys[11], keys[10]]),
        ("So?", [keys[11]]),
        ("Is like <image>?", [keys[10]]),
        ("Why?", []),
    ]
    assert {row["split"] for row in found["questions"]} == {"test"}


def test_turns_that_are_cut_off_take_their_images_with_them(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    talk = ["<image>\nWhich?", "One."] + ["And <image>?", "No."] * 4
    images = [0, 1, 2, 3, 4]
    found = made(tmp_path / "in", tiny_bundle, [(images, talk)], tmp_path / "work")
    (row,) = found["examples"]
    assert row["turns"] == 3
    assert row["more_sha256"] == hashes(tmp_path / "in")[1:3]


DROPPED = {
    "image missing": ([0, 99], ["<image><image>\nWhich?", "One."]),
    "images of several splits": ([0, 11], ["<image><image>\nWhich?", "One."]),
    "image marker count": ([0, 1], ["<image>\nWhich?", "One."]),
    "empty turn": ([0, 1], ["<image><image>", "One."]),
}


@pytest.mark.parametrize("reason", DROPPED)
def test_a_conversation_is_dropped_whole(tmp_path: Path, tiny_bundle: Path, reason: str) -> None:
    found = made(tmp_path / "in", tiny_bundle, [DROPPED[reason]], tmp_path / "work")
    assert found["examples"] == []
    (row,) = (row for row in found["drops"] if row["record"] == str(COUNT))
    assert row["reason"] == reason
    lost = {"image missing": "99.jpg", "images of several splits": "11.jpg"}
    assert row["file"] == lost.get(reason, "train2017/0.jpg")


def test_an_answer_cannot_have_an_image(tmp_path: Path, tiny_bundle: Path) -> None:
    talk = ([0, 1], ["<image>\nWhich?", "This: <image>"])
    found = made(tmp_path / "in", tiny_bundle, [talk], tmp_path / "work")
    assert [row["reason"] for row in found["drops"] if row["record"] == str(COUNT)] == [
        "image marker count"
    ]


def test_the_same_talk_about_other_images_is_no_duplicate(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    talk = ["<image><image>\nWhich?", "One."]
    talks = [([0, 1], talk), ([0, 2], talk), ([0, 1], talk)]
    found = made(tmp_path / "in", tiny_bundle, talks, tmp_path / "work")
    assert len(found["examples"]) == 2
    assert [row["reason"] for row in found["drops"] if row["kind"] == "conversation"] == [
        "duplicate"
    ]


def test_a_further_image_that_is_also_tested_with_is_refused(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    root = tmp_path / "in"
    write_talks(root, tiny_bundle, [([0, 1], ["<image><image>\nWhich?", "One."])])
    path = root / "images/images.parquet"
    table = read_table(path)
    keys = table["sha256"].to_pylist()
    keys[1] = keys[11]  # an image of training has the content of one of test
    at = table.schema.get_field_index("sha256")
    write_arrow(path, table.set_column(at, table.schema.field(at), pa.array(keys)))
    captions = root / "images/captions.parquet"
    kept = [row for row in read_table(captions).to_pylist() if row["image_id"] != 1]
    write_arrow(captions, pa.Table.from_pylist(kept, read_table(captions).schema))
    talks = root / "conversations/conversations.parquet"
    said = [row for row in read_table(talks).to_pylist() if row["image_name"] != "1.jpg"]
    write_table(talks, said, CONVERSATIONS)
    with pytest.raises(PipelineError, match="are the same image"):
        examples(context_of(root, tmp_path / "work"), preset("demo").examples, 0)
