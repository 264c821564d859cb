"""Scores of two runs, paired by what was asked; intervals over images."""

from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.pairing import difference, scores_by_question


def row(image: int, question: str, score: float | None, number: int = 0) -> dict[str, Any]:
    answers = {"references": ["yes"], "question_id": number}
    return {"image_id": image, "question": question, "score": score, **answers}


def test_questions_are_paired_by_what_they_ask_not_by_their_number() -> None:
    old = [row(n, "Is it red?", 0.0, number=n) for n in range(9)]
    new = [row(n, "Is it red?", 1.0, number=n + 100) for n in range(9)]
    found = difference(scores_by_question(new), scores_by_question(old), 0, 50)
    assert found is not None
    assert (found.low, found.high) == (1.0, 1.0)


def test_what_only_one_was_asked_or_has_no_score_is_left_out() -> None:
    old = [row(1, "a", 0.5), row(2, "a", 0.5), row(3, "a", None)]
    new = [row(1, "a", 1.0), row(2, "a", 1.0), row(3, "a", 0.0), row(4, "a", 0.0)]
    found = difference(scores_by_question(new), scores_by_question(old), 0, 50)
    assert found is not None
    assert found.value == 0.5
    one = scores_by_question(new[:1])
    assert difference(one, one, 0, 50) is None
    assert difference(scores_by_question(new), {}, 0, 50) is None


def test_many_questions_about_an_image_are_no_more_than_one_image() -> None:
    hard = np.random.default_rng(0).normal(0, 1, 30)
    widths = []
    for asked in (1, 20):
        new = [row(n, f"q{q}", float(hard[n])) for n in range(30) for q in range(asked)]
        old = [row(n, f"q{q}", 0.0) for n in range(30) for q in range(asked)]
        found = difference(scores_by_question(new), scores_by_question(old), 0, 500)
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0])
