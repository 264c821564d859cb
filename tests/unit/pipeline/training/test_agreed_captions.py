"""Which captions are learned for an image, and with which image."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.schemas import EXAMPLES
from pipeline.recipe.parts import FinetunePart
from pipeline.training.agreed_captions import agreed_captions
from tests.support.shown_images import key_of, write_images
from tests.support.training_inputs import Choices, context_of

TEXTS = {
    0: ["a dog runs on grass", "something else", "the dog is brown"],
    1: ["a dog runs", "a dog runs on grass", "a brown dog"],
    2: ["a boat on a lake", "a red boat", "a boat"],
    3: ["the boat on a lake", "one boat", "a boat on the water"],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((2, 8))
    pooled = np.repeat(centres, 2, axis=0) + 0.1 * rng.standard_normal((4, 8))
    patches = np.zeros((4, 2, 4), np.float16)
    write_images(tmp_path / "features", patches, pooled.astype(np.float32))
    return tmp_path


def examples(kinds: dict[int, list[str]] = TEXTS) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for image, texts in kinds.items():
        for kind, text in [*(("caption", text) for text in texts), ("conversation", "Which?")]:
            rows.append(
                {
                    "example_id": len(rows),
                    "kind": kind,
                    "split": "train",
                    "image_id": image,
                    "sha256": key_of(image),
                    "more_sha256": [],
                    "source_id": len(rows),
                    "turns": 1,
                    "text": text,
                    "input_ids": [len(rows), 0],
                    "supervised": [True, True],
                }
            )
    return pa.Table.from_pylist(rows, EXAMPLES)


def part(own: int, other: int) -> FinetunePart:
    made = Choices(stage="finetune").part()
    assert isinstance(made, FinetunePart)
    return made.model_copy(update={"own_captions": own, "other_captions": other})


def learned(root: Path, table: pa.Table, own: int, other: int) -> list[dict[str, Any]]:
    return agreed_captions(context_of(root, root / "work"), part(own, other), table).to_pylist()


def test_a_neighbours_caption_is_learned_with_the_image_it_describes(root: Path) -> None:
    found = learned(root, examples(), 1, 1)
    captions = [row for row in found if row["kind"] == "caption"]
    by_image = {
        image: [row["text"] for row in captions if row["image_id"] == image] for image in TEXTS
    }
    assert {len(texts) for texts in by_image.values()} == {2}
    assert "something else" not in by_image[0]
    assert by_image[0][0] in TEXTS[0]
    assert by_image[0][1] in TEXTS[1]
    assert by_image[3][1] in TEXTS[2]
    before = {row["example_id"]: row for row in examples().to_pylist()}
    for row in captions:
        assert row["sha256"] == key_of(row["image_id"])
        assert row["input_ids"] == before[row["example_id"]]["input_ids"]


def test_conversations_stay_as_they_are(root: Path) -> None:
    told = [row for row in examples().to_pylist() if row["kind"] == "conversation"]
    assert [row for row in learned(root, examples(), 2, 3) if row["kind"] != "caption"] == told


def test_the_same_captions_are_chosen_again(root: Path) -> None:
    assert learned(root, examples(), 2, 3) == learned(root, examples(), 2, 3)


def test_one_image_has_nobody_to_agree_with(root: Path) -> None:
    alone = examples({0: TEXTS[0]})
    assert learned(root, alone, 1, 1) == alone.to_pylist()
