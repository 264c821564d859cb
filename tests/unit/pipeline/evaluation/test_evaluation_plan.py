"""What is asked of a model: questions about all images, and of which split they are."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.assistant import load_assistant
from pipeline.data.schemas import EXAMPLES, IMAGES, OBJECTS, QUESTIONS
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.tasks import spread
from pipeline.recipe.presets import preset
from storage.tables import read_table, write_table
from tests.support.shown_images import key_of, write_images
from tests.support.training_inputs import context_of

Row = dict[str, Any]


def rows_of(counts: list[int]) -> list[Row]:
    """So many questions about each image, one image after the other, as the tables are."""
    images = [image for image, count in enumerate(counts) for _ in range(count)]
    return [{"image_id": image, "number": number} for number, image in enumerate(images)]


def test_a_limit_leaves_no_image_out() -> None:
    rows = rows_of([10] * 25)
    counts = Counter(row["image_id"] for row in spread(rows, 60, seed=0))
    assert len(counts) == 25
    assert set(counts.values()) == {2, 3}
    others = spread(rows, 60, seed=1)
    assert others != spread(rows, 60, seed=0)
    assert {row["number"] % 10 for row in others} == set(range(10))  # not only first questions


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(0, 30), st.integers(0, 9))
def test_images_share_a_limit_as_evenly_as_they_can(
    counts: list[int], limit: int, seed: int
) -> None:
    rows = rows_of(counts)
    found = spread(rows, limit, seed)
    assert len(found) == min(limit, len(rows))
    assert found == spread(rows, limit, seed)
    assert [row["number"] for row in found] == sorted({row["number"] for row in found})
    taken = Counter(row["image_id"] for row in found)
    most = max(taken.values(), default=0)
    assert all(taken[image] >= min(count, most - 1) for image, count in enumerate(counts))


@pytest.mark.parametrize(("tested", "known"), [(1, False), (2, True)])
def test_an_image_alone_is_never_shown_as_another(tmp_path: Path, tested: int, known: bool) -> None:
    patches = write_images(tmp_path, np.zeros((4, 2, 3), np.float16))
    shown = Shown(patches, np.arange(tested), np.array([3]), 0)
    assert ("shuffled" in shown.conditions) is known
    assert {"real", "blind"} <= set(shown.conditions)


def write_evaluation_inputs(root: Path, tiny_bundle: Path, spoken: str) -> None:
    """Write what `evaluate` reads: test captions, and conversations of one split."""
    assistant = load_assistant(tiny_bundle)
    template = assistant.template
    for name in ("backbones", "finetune"):
        shutil.copytree(tiny_bundle / "lm", root / name / "lm")
    shutil.copytree(tiny_bundle / "clip", root / "backbones/clip")
    for name in ("pretrain", "finetune"):
        (root / name).mkdir(exist_ok=True)
        for file in tiny_bundle.glob("vision_prefix*"):
            shutil.copy(file, root / name)
    patches = np.random.default_rng(1).standard_normal((9, 49, 32)).astype(np.float16)
    write_images(root / "features", patches, splits=["test"] * 4 + [spoken] * 4 + ["train"])
    examples, questions = [], []
    for image in range(9):
        split = "train" if image == 8 else "test" if image < 4 else spoken
        kind = "caption" if image < 4 or image == 8 else "conversation"
        tokens = template.caption("Two.")
        if kind == "conversation":
            tokens = template.conversation([("Two?", "Red.")])
            place = {"example_id": image, "split": split, "image_id": image, "turn": 0}
            said = {"sha256": key_of(image), "question": "Two?", "answer": "Red."}
            said["more_sha256"] = []
            questions.append({"question_id": len(questions), **place, **said})
        examples.append(
            {
                "example_id": image,
                "kind": kind,
                "split": split,
                "image_id": image,
                "sha256": key_of(image),
                "more_sha256": [],
                "source_id": image,
                "turns": 0,
                "text": "Two.",
                "input_ids": tokens.input_ids,
                "supervised": tokens.supervised,
            }
        )
    (root / "images").mkdir()
    write_table(root / "images/objects.parquet", [], OBJECTS)
    images = [{"image_id": image, "width": 96, "height": 64} for image in range(9)]
    write_table(root / "images/images.parquet", images, IMAGES)
    write_table(root / "examples/examples.parquet", examples, EXAMPLES)
    write_table(root / "examples/questions.parquet", questions, QUESTIONS)
    stored = {"eos_id": template.eos_id, "user_prefix": "", "assistant_prefix": "\n"}
    (root / "examples/template.json").write_text(json.dumps(stored))


@pytest.mark.parametrize("spoken", ["test", "validation"])
def test_questions_come_from_validation_where_none_is_about_a_test_image(
    tmp_path: Path, tiny_bundle: Path, spoken: str
) -> None:
    write_evaluation_inputs(tmp_path / "in", tiny_bundle, spoken)
    part = preset("demo").override({"evaluate.max_new_tokens": 4}).evaluate
    context = context_of(tmp_path / "in", tmp_path / "work")
    evaluate(context, part, 0)
    splits: dict[str, set[str]] = {}
    for row in read_table(context.out / "metrics.parquet").to_pylist():
        if row["stage"] == "finetune":
            splits.setdefault(row["metric"], set()).add(row["split"])
    asked = {"answer_accuracy", "answer_accuracy_gap", "nll", "nll_gap", "nll_other"}
    assert asked <= set(splits)
    for metric, found in splits.items():
        about_answers = metric.startswith(("answer", "accuracy", "nll"))
        assert found == {spoken if about_answers else "test"}, metric
    rows = read_table(context.out / "predictions.parquet").to_pylist()
    assert {(row["kind"], row["split"]) for row in rows} == {
        ("caption", "test"),
        ("answer", spoken),
    }
    looked = read_table(context.out / "importance.parquet").to_pylist()
    said = {row["prediction_id"]: row for row in rows}
    assert {said[row["prediction_id"]]["condition"] for row in looked} == {"real"}
    assert {row["image_id"] for row in looked} == {0, 1, 2, 3}
    kinds = {"caption", "answer"} if spoken == "test" else {"caption"}
    assert {said[row["prediction_id"]]["kind"] for row in looked} <= kinds
    for number in {row["prediction_id"] for row in looked}:
        words = [row["word"] for row in looked if row["prediction_id"] == number]
        assert words == said[number]["prediction"].split()


def test_without_images_to_look_at_nothing_is_looked_at(tmp_path: Path, tiny_bundle: Path) -> None:
    write_evaluation_inputs(tmp_path / "in", tiny_bundle, "test")
    shutil.rmtree(tmp_path / "in/backbones/clip")  # it is not even read
    changes = {"evaluate.max_new_tokens": 4, "evaluate.pointing_images": 0}
    context = context_of(tmp_path / "in", tmp_path / "work")
    evaluate(context, preset("demo").override(changes).evaluate, 0)
    assert read_table(context.out / "importance.parquet").to_pylist() == []
    metrics = read_table(context.out / "metrics.parquet")["metric"].to_pylist()
    assert not [name for name in metrics if name.startswith("pointing")]
