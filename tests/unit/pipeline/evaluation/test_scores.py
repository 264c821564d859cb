"""Rows of the metrics table: values, paired gaps, intervals."""

import numpy as np
import pytest

from pipeline.evaluation.metrics import (
    Metric,
    answer_metrics,
    caption_metrics,
    mean,
    presence_metrics,
    ratio,
)
from pipeline.evaluation.scorers.pope import SETS, PresenceAsker
from pipeline.evaluation.scores import summarize

IMAGES = list(range(60))


def rows_by_name(found: dict[str, list[Metric]]) -> dict[tuple[str, str], dict[str, float]]:
    rows = summarize("finetune", found, resamples=400, seed=0)
    return {(row["metric"], row["condition"]): row for row in rows}


def test_a_gap_is_paired_and_positive_where_the_image_helps() -> None:
    noise = np.random.default_rng(0).normal(0, 5, 60)
    found = {
        "real": [mean("good", IMAGES, noise + 0.3), mean("bad", IMAGES, noise, -1)],
        "blind": [mean("good", IMAGES, noise), mean("bad", IMAGES, noise + 0.3, -1)],
    }
    rows = rows_by_name(found)
    for metric in ("good_gap", "bad_gap"):
        gap = rows[metric, "blind"]
        assert [gap["low"], gap["value"], gap["high"]] == pytest.approx([0.3] * 3)
    wide = rows["good", "real"]
    assert wide["high"] - wide["low"] > 1


def test_what_has_no_value_has_no_row_and_one_image_no_interval() -> None:
    rows = rows_by_name({"real": [ratio("none", [1], [0], [0]), mean("one", [1], [0.5])]})
    assert ("none", "real") not in rows
    assert rows["one", "real"]["value"] == 0.5
    assert rows["one", "real"]["low"] is None


# Four answers: a hit, a false alarm, a right no and a miss, as the published script counts them.
def test_presence_has_the_five_published_figures() -> None:
    cells = [("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes"), ("yes", "yes")]
    answers = [
        {"image_id": n, "prediction": said, "references": [true], "sets": ["random"]}
        for n, (said, true) in enumerate(cells)
    ]
    rows = rows_by_name({"real": presence_metrics(answers)})
    values = {m.removeprefix("pope_random_"): row["value"] for (m, _), row in rows.items()}
    assert values["accuracy"] == pytest.approx(3 / 5)
    assert values["precision"] == values["recall"] == values["f1"] == pytest.approx(2 / 3)
    assert values["yes_ratio"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("said", ["no", "yes"])
def test_who_always_says_the_same_is_right_in_half_of_all_presence_questions(said: str) -> None:
    objects = {1: ["cup", "fork"], 2: ["cup"], 3: ["bowl", "spoon", "cup"], 4: ["pan", "lid"]}
    asker = PresenceAsker(objects, seed=0)
    answers = [
        {"image_id": i, "prediction": said, "references": ["yes" if q.present else "no"]}
        | {"sets": list(q.sets)}
        for i in objects
        for q in asker.ask(i, most=2)
    ]
    rows = rows_by_name({"real": presence_metrics(answers)})
    assert [rows[f"pope_{name}_accuracy", "real"]["value"] for name in SETS] == [0.5] * 3
    assert rows["pope_accuracy", "real"]["value"] == 0.5
    assert rows["pope_accuracy", "real"]["count"] == len(answers)


def test_answers_get_lengths_and_repetition() -> None:
    texts = [("a red cup", "a red cup"), ("it is it is it is it is", "it is red")]
    answers = [
        {"image_id": n, "prediction": said, "references": [true], "score": float(said == true)}
        for n, (said, true) in enumerate(texts)
    ]
    rows = rows_by_name({"real": answer_metrics(answers)})
    assert rows["answer_length_ratio", "real"]["value"] == pytest.approx(11 / 6)
    assert rows["answer_repetition", "real"]["value"] == pytest.approx(3 / 5)


def test_captions_get_lengths_repetition_and_hallucinations() -> None:
    captions = [
        {
            "image_id": n,
            "prediction": text,
            "references": ["a red cat on a mat"],
            "hallucinated": wrong,
            "mentions": 1,
        }
        for n, (text, wrong) in enumerate(
            [("a red cat on a mat", []), ("a dog a dog a dog a dog", ["dog"])]
        )
    ]
    rows = rows_by_name({"real": caption_metrics(captions)})
    assert rows["length_ratio", "real"]["value"] == pytest.approx(14 / 12)
    assert rows["repetition", "real"]["value"] == pytest.approx(3 / 8)
    assert rows["chair_i", "real"]["value"] == rows["chair_s", "real"]["value"] == 0.5
    assert rows["bleu_4", "real"]["low"] is not None
    assert captions[0]["score"] >= captions[1]["score"]
