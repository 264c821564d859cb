"""Our scores beside those of the official programs, on texts of our own.

Each file in `golden/` was scored once; `made_with` in it says by which program. Real captions are
in tests/real, where they are allowed to be.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.metrics import presence_metrics
from pipeline.evaluation.scorers.captions import score_captions
from pipeline.evaluation.scorers.java import meteor
from pipeline.evaluation.scorers.pope import SETS
from pipeline.evaluation.scorers.ptb_tokenizer import tokenize
from pipeline.evaluation.scorers.vqa import answer_accuracy, normalize_answer
from pipeline.evaluation.scores import summarize

GOLDEN = Path(__file__).with_name("golden")
QUOTABLE = 0.005  # of an official value, within which ours may be quoted


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def captions() -> dict[str, Any]:
    return golden("captions")


def test_tokens_are_those_of_the_java_tokenizer(captions: dict[str, Any]) -> None:
    pairs = [
        (raw, java)
        for image in captions["images"]
        for raw, java in zip(
            [image["caption"], *image["references"]],
            [image["tokens"], *image["reference_tokens"]],
            strict=True,
        )
    ]
    assert len(pairs) > 200
    assert [(raw, java) for raw, java in pairs if " ".join(tokenize(raw)) != java] == []


def test_caption_scores_are_the_official_ones(captions: dict[str, Any]) -> None:
    images = captions["images"]
    assert len(images) == 60
    scores = score_captions([i["caption"] for i in images], [i["references"] for i in images])
    for metric, found in scores.corpus.items():
        assert found == pytest.approx(captions["corpus"][metric], rel=QUOTABLE)
        official = [image["scores"][metric] for image in images]
        assert scores.per_image[metric] == pytest.approx(official, rel=QUOTABLE, abs=1e-9)


@pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="METEOR is a Java program of pycocoevalcap: no Java, or no extra java-metrics, here",
)
def test_meteor_is_the_official_one(captions: dict[str, Any]) -> None:
    found = meteor({"all": [(i["caption"], i["references"]) for i in captions["images"]]})
    assert found["all"] == pytest.approx(captions["corpus"]["meteor"], rel=QUOTABLE)


def test_vqa_answers_are_normalized_and_scored_as_published() -> None:
    cases = golden("vqa")["cases"]
    assert len(cases) > 400
    wrong = [
        case
        for case in cases
        if normalize_answer(case["prediction"]) != case["normal"]
        or abs(answer_accuracy(case["prediction"], case["answers"]) - case["accuracy"]) > 1e-9
    ]
    assert wrong == []


def test_presence_has_the_figures_of_the_published_evaluator() -> None:
    files = golden("pope")
    asked: dict[tuple[str, str], dict[str, Any]] = {}
    for name, rows in files["sets"].items():  # three files; what is there is asked in each
        for row in rows:
            question = asked.setdefault(
                (row["image"], row["text"]),
                {"image_id": int(row["image"][8:10]), "prediction": row["answer"]}
                | {"references": [row["label"]], "sets": []},
            )
            question["sets"].append(name)
    rows = summarize("finetune", {"real": presence_metrics(list(asked.values()))}, 50, 0)
    found = {row["metric"]: row["value"] for row in rows}
    for name in SETS:
        for figure, official in files["figures"][name].items():
            assert found[f"pope_{name}_{figure}"] == pytest.approx(official)
    accuracies = [files["figures"][name]["accuracy"] for name in SETS]
    assert found["pope_accuracy"] == pytest.approx(sum(accuracies) / 3)
