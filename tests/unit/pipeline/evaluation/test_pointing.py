"""Which words name what, and how much of what mattered for them lies on it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.assistant import Assistant, load_assistant
from model.explanation import by_word
from model.importance import importance_map
from model.patch_grid import View
from pipeline.evaluation.boxes import patches_in_boxes
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.pointing import (
    IMPORTANCE,
    Boxes,
    Mention,
    look,
    pointing_metrics,
    table_rows,
)
from pipeline.evaluation.scorers.chair import ObjectNames
from pipeline.evaluation.scores import summarize
from pipeline.evaluation.tasks import Task
from storage.tables import read_table, write_table
from tests.support.shown_images import write_images

Row = dict[str, Any]
PATCHES, VISION = 49, 32
CIRCLE, DOG = (10.0, 0.0, 30.0, 30.0), (60.0, 60.0, 40.0, 40.0)
VIEW = View(0, 0, 100, 100)


def boxes_of(images: int = 2) -> Boxes:
    """Images with a circle; the first one has a dog, too."""
    marked = {number: {"circle": [CIRCLE]} for number in range(images)}
    marked[0]["dog"] = [DOG]
    tasks = [Task("caption", number, [], {"image_id": number}) for number in range(images)]
    names = ObjectNames({"circle", "dog", "hot dog", "square"})
    return Boxes(tasks, dict.fromkeys(range(images), VIEW), marked, names)


def said(image: int, prediction: str, question: str = "", condition: str = "real") -> Row:
    kind = "answer" if question else "caption"
    return {
        "image_id": image,
        "prediction": prediction,
        "question": question,
        "images": 1,
        "condition": condition,
        "kind": kind,
    }


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (said(0, "A red circle."), [None, None, "circle"]),
        (said(0, "Two dogs, a circle"), [None, "dog", None, "circle"]),
        (said(0, "A hot dog"), [None, None, None]),  # it names what nobody marked
        (said(1, "A dog"), [None, None]),  # not in this image
        (said(0, "Red light.", "What colour is the circle?"), ["circle", "circle"]),
        (said(0, "A dog", "What is beside the circle?"), [None, "dog"]),
        (said(1, "A dog", "What is beside the circle?"), [None, None]),
        (said(0, "Two.", "How many objects are there?"), [None]),
        (said(0, "Yes", "Is the dog left of the circle?"), [None]),
        (said(0, "no", "Is there a square?"), [None]),
        (said(7, "A circle", "What?"), [None, None]),
    ],
)
def test_words_are_about_what_they_name_or_else_about_what_is_asked_for(
    row: Row, named: list[str | None]
) -> None:
    assert boxes_of().named(row, row["prediction"].split()) == named


def test_words_keep_the_names_that_the_whole_text_has() -> None:
    names = ObjectNames({"dog", "hot dog", "traffic light"})
    assert names.by_word(["A", "hot", "dog,", "a", "dog."]) == [
        None,
        "hot dog",
        "hot dog",
        None,
        "dog",
    ]
    assert names.by_word([]) == []
    text = "two dogs and traffic lights"
    assert [name for name in names.by_word(text.split()) if name] == [
        "dog",
        "traffic light",
        "traffic light",
    ]
    assert names.mentioned(text) == ["dog", "traffic light"]


@pytest.fixture(scope="module")
def sighted(tiny_bundle: Path) -> Assistant:
    """An assistant of our own whose answers hang on the image more than others' do."""
    assistant = load_assistant(tiny_bundle)
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in assistant.vlm.vision_prefix.parameters():
            parameter.normal_(0, 0.5)
    return assistant


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    patches = np.random.default_rng(7).standard_normal((4, PATCHES, VISION)).astype(np.float16)
    table = write_images(tmp_path_factory.mktemp("images"), patches)
    return Shown(table, np.arange(3), np.array([3]), 0)


def test_every_word_is_looked_at_and_words_with_boxes_with_another_image_too(
    sighted: Assistant, shown: Shown, tmp_path: Path
) -> None:
    predictions = [
        said(0, "A red circle"),
        said(0, "Red", "What colour is the circle?"),
        said(0, "Two", "How many objects are there?"),
        said(0, "Blue", "What colour is the circle?", condition="shuffled"),
        said(1, ""),
        said(9, "A circle that nobody looks at"),
        said(1, "green"),
    ]
    boxes, vlm, template = boxes_of(), sighted.vlm, sighted.template
    looks: list[int] = []
    rows = look(vlm, template, predictions, boxes, shown, 64, lambda n=1, note="": looks.append(n))
    assert len(looks) == 4  # two images under two conditions
    words = [(row["condition"], row["word"], row["category"]) for row in rows]
    assert words == [
        ("real", "A", None),
        ("real", "red", None),
        ("real", "circle", "circle"),
        ("real", "Red", "circle"),
        ("real", "Two", None),
        ("real", "green", None),
        ("shuffled", "A", None),
        ("shuffled", "red", None),
        ("shuffled", "circle", "circle"),
        ("shuffled", "Red", "circle"),
    ]
    patches = {name: shown.show([0], name)[0] for name in ("real", "shuffled")}
    ids = template.encode("A red circle")
    holds = patches_in_boxes([CIRCLE], VIEW, 7)
    for number, condition in ((2, "real"), (8, "shuffled")):
        tokens = importance_map(vlm, patches[condition], [], ids)
        expected = by_word(template, ids, tokens)[1][2]
        np.testing.assert_allclose(rows[number]["importance"], expected, atol=1e-3)
        positive = expected.clip(min=0)
        share = positive[holds].sum() / positive.sum()
        assert rows[number]["share"] == pytest.approx(share, abs=1e-3)
        assert rows[number]["hit"] == holds[expected.argmax()]
    for number, row in enumerate(predictions):
        row["prediction_id"] = 10 * number
    write_table(tmp_path / "importance.parquet", table_rows(rows), IMPORTANCE)
    stored = read_table(tmp_path / "importance.parquet").to_pylist()
    assert [row["prediction_id"] for row in stored] == [0] * 3 + [10, 20, 60] + [0] * 3 + [10]
    assert {row["view_width"] for row in stored} == {100}


def test_an_object_outside_of_what_is_seen_is_not_pointed_at(
    sighted: Assistant, shown: Shown
) -> None:
    boxes = boxes_of(1)
    boxes.views[0] = View(50, 50, 50, 50)
    rows = look(sighted.vlm, sighted.template, [said(0, "A circle")], boxes, shown, 64)
    assert [(row["word"], row["category"]) for row in rows] == [("A", None), ("circle", None)]
    assert pointing_metrics(rows) == {}


def test_pointing_is_the_share_inside_and_the_game_counts_tops() -> None:
    first, second = Mention(1, 3.0, 4.0, True), Mention(2, 0.0, 1.0, False)
    none = Mention(2, 0.0, 0.0, False)
    real = [first, first, second, none, None]  # both words of the first mention
    other = [Mention(1, 1.0, 4.0, False)]
    rows = [{"condition": "real", "mention": each} for each in real]
    rows += [{"condition": "shuffled", "mention": each} for each in other]
    found = summarize("finetune", pointing_metrics(rows), 20, 0)
    values = {(row["condition"], row["metric"]): (row["value"], row["count"]) for row in found}
    assert values == {
        ("real", "pointing"): (0.6, 2),
        ("real", "pointing_game"): (0.5, 2),
        ("shuffled", "pointing"): (0.25, 1),
        ("shuffled", "pointing_game"): (0.0, 1),
        ("shuffled", "pointing_gap"): (0.35, 1),
        ("shuffled", "pointing_game_gap"): (0.5, 1),
    }
