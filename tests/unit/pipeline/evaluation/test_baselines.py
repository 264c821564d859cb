"""Floors: captions that no language model wrote, made of what training images have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.schemas import EXAMPLES
from pipeline.evaluation.baselines import baseline_captions
from storage.tables import write_table
from tests.support.shown_images import key_of, write_images
from tests.support.training_inputs import files_of

# Image → its split, its pooled embedding and its captions.
TRAIN, VALIDATION, TEST = "train", "validation", "test"
IMAGES: list[tuple[str, tuple[float, float], list[str]]] = [
    (TRAIN, (1, 0), ["east", "the east"]),
    (TRAIN, (0, 1), ["a place"]),
    (TRAIN, (-30, -30), ["a place", "southwest"]),
    (VALIDATION, (1, 0.1), ["validation"]),
    (TEST, (1, 0.1), ["own east", "said often"]),
    (TEST, (0.1, 1), ["own north", "said often"]),
    (TEST, (-0.1, -0.1), ["own southwest", "said often"]),
]


def baselines(
    folder: Path, images: list[tuple[str, tuple[float, float], list[str]]], kind: str = "caption"
) -> dict[str, dict[int, str]]:
    """Return the baselines by number of image."""
    rows: list[dict[str, Any]] = []
    for number, (split, _, captions) in enumerate(images):
        place = {"split": split, "image_id": number, "sha256": key_of(number)}
        for text in captions:
            fixed = {"example_id": len(rows), "source_id": 0, "turns": 1}
            rows.append({**place, **fixed, "kind": kind, "text": text})
            talk = {"kind": "conversation", "text": "what people asked most"}
            rows.append({**rows[-1], **talk, "example_id": len(rows)})
    for row in rows:
        row |= {"more_sha256": [], "input_ids": [1], "supervised": [True]}
    write_table(folder / "examples/examples.parquet", rows, EXAMPLES)
    write_images(
        folder / "features",
        np.ones((len(images), 1, 2), np.float16),
        np.array([pooled for _, pooled, _ in images], np.float32),
        [split for split, _, _ in images],
    )
    found = baseline_captions(files_of(folder / "examples"), files_of(folder / "features"), 1)
    numbers = {key_of(number): number for number in range(len(images))}
    return {
        name: {numbers[key]: text for key, text in texts.items()} for name, texts in found.items()
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    return baselines(tmp_path_factory.mktemp("baselines"), IMAGES)


def test_every_test_image_and_no_other_has_both(found: dict[str, dict[int, str]]) -> None:
    assert list(found) == ["most_frequent", "nearest_neighbour"]
    assert all(sorted(texts) == [4, 5, 6] for texts in found.values())


def test_the_commonest_caption_is_counted_in_training_only(
    found: dict[str, dict[int, str]],
) -> None:
    assert set(found["most_frequent"].values()) == {"a place"}


def test_the_neighbour_is_a_training_image_never_the_image_itself(
    found: dict[str, dict[int, str]],
) -> None:
    # Image 3 lies just where image 4 does, but is for validation; directions count, not length.
    assert found["nearest_neighbour"] == {4: "east", 5: "a place", 6: "a place"}
    said = {text for texts in found.values() for text in texts.values()}
    assert not said & {text for split, _, texts in IMAGES if split != TRAIN for text in texts}


def test_what_test_captions_say_changes_nothing(
    found: dict[str, dict[int, str]], tmp_path: Path
) -> None:
    other = [
        (split, pooled, ["something else"] if split == TEST else captions)
        for split, pooled, captions in IMAGES
    ]
    assert baselines(tmp_path, other) == found


def test_an_embedding_of_zeros_is_nobody_s_nearest(tmp_path: Path) -> None:
    train = [(TRAIN, (0.0, 0.0), ["blank"]), (TRAIN, (0.0, 1.0), ["north"])]
    texts = baselines(tmp_path, [*train, (TEST, (1.0, 0.2), ["own"]), (TEST, (0.0, 0.0), ["own"])])
    assert texts["nearest_neighbour"][2] == "north"
    assert texts["nearest_neighbour"].keys() == {2, 3}  # what has no direction has some caption


def test_ties_go_to_the_same_caption_whatever_the_order(tmp_path: Path) -> None:
    train = [(TRAIN, (1.0, 0.0), [text]) for text in ("b", "a", "c")]
    texts = baselines(tmp_path, [*train, (TEST, (1.0, 0.0), ["own"])])
    assert texts["most_frequent"] == {3: "a"}
    largest = max(range(3), key=key_of)
    assert texts["nearest_neighbour"] == {3: train[largest][2][0]}
