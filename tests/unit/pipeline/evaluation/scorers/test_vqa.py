"""VQA accuracy: the challenge's values, quirks included."""

import pytest

from pipeline.evaluation.scorers.vqa import answer_accuracy, answer_type, normalize_answer


# What lmms-eval's vqav2 task says of ten people's answers; golden/vqa.json has many more.
@pytest.mark.parametrize(
    ("prediction", "answers", "accuracy"),
    [
        ("Two.", ["2"] * 4 + ["two", "3", "3", "a two", "none", "two!"], 1.0),
        ("yes", ["yes"] * 10, 1.0),
        ("Yes.", ["yes"] * 10, 1.0),  # normalized where all agree, too
        ("2", ["two"] * 10, 1.0),
        ("red-ish", ["red ish"] * 2 + ["red"] * 8, 0.6),
        ("It isnt", ["it isn't"] * 3 + ["no"] * 7, 0.9),
        ("1,000", ["1000"] + ["1,000"] * 4 + ["many"] * 5, 1.0),
    ],
)
def test_ten_answers_give_the_published_value(
    prediction: str, answers: list[str], accuracy: float
) -> None:
    assert answer_accuracy(prediction, answers) == pytest.approx(accuracy)


def test_one_answer_counts_after_normalization() -> None:
    assert answer_accuracy("A red square.", ["red square"]) == 1
    assert answer_accuracy("Two", ["2."]) == 1
    assert answer_accuracy("blue", ["red"]) == 0


def test_marks_contractions_and_numbers_follow_the_challenge() -> None:
    assert normalize_answer("The dont, 3.5 none") == "don't 3.5 0"
    assert normalize_answer("red/blue") == "red blue"
    assert normalize_answer("red/ blue") == "red blue"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("Yes.", "yes_no"), ("no, never", "yes_no"), ("Two.", "number"), ("a cat", "other")],
)
def test_answers_have_one_of_three_types(answer: str, kind: str) -> None:
    assert answer_type(answer) == kind
