"""Caption scores by hand on small cases, and laws that hold for any captions."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.scorers.captions import CaptionScores, score_captions

METRICS = ["cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"]


def score_one(hypothesis: str, *references: str) -> CaptionScores:
    return score_captions([hypothesis], [list(references)])


def test_every_metric_has_a_corpus_figure_and_one_per_image() -> None:
    scores = score_captions(["a cat", "a dog"], [["a cat"], ["the dog", "a dog runs"]])
    assert list(scores.corpus) == METRICS
    assert {name: array.shape for name, array in scores.per_image.items()} == dict.fromkeys(
        METRICS, (2,)
    )


def test_bleu_clips_a_repeated_word() -> None:
    scores = score_one(
        "the the the the the the the", "the cat is on the mat", "there is a cat on the mat"
    )
    assert scores.corpus["bleu_1"] == pytest.approx(2 / 7)


def test_bleu_multiplies_precisions() -> None:
    scores = score_one("a b c x", "a b c d")
    assert scores.corpus["bleu_2"] == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
    assert scores.corpus["bleu_3"] == pytest.approx((3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))


def test_bleu_punishes_a_short_caption() -> None:
    assert score_one("a b", "a b c d").corpus["bleu_1"] == pytest.approx(math.exp(1 - 4 / 2))


def test_bleu_takes_the_shorter_of_two_equally_close_references() -> None:
    assert score_one("a b c", "a b", "a b c d").corpus["bleu_1"] == pytest.approx(1)


def test_corpus_bleu_adds_counts_before_it_divides() -> None:
    scores = score_captions(["a b c d", "x"], [["a b c d"], ["y"]])
    assert scores.corpus["bleu_1"] == pytest.approx(4 / 5)
    assert scores.per_image["bleu_1"] == pytest.approx([1, 0])


def test_bleu_4_of_a_three_word_caption_is_near_zero_as_in_coco_caption() -> None:
    assert score_one("a red cat", "a red cat").corpus["bleu_4"] < 1e-1
    assert score_one("a red cat", "a red cat").corpus["bleu_3"] == pytest.approx(1)


def test_rouge_counts_the_longest_common_subsequence() -> None:
    assert score_one("police killed the gunman", "police kill the gunman").corpus[
        "rouge_l"
    ] == pytest.approx(3 / 4)
    # Order matters: of "the gunman kill police" only "the gunman" follows in order.
    assert score_one("the gunman kill police", "police kill the gunman").corpus[
        "rouge_l"
    ] == pytest.approx(2 / 4)


def test_rouge_weights_recall_and_takes_the_best_of_all_references() -> None:
    precision, recall = 4 / 5, 4 / 4
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    scores = score_one("this is a good test", "this is a test", "this is also a test")
    assert scores.corpus["rouge_l"] == pytest.approx(expected)
    # Precision from the long reference, recall from the short one.
    assert score_one("a b c d", "a b c d e f g h", "a").corpus["rouge_l"] == pytest.approx(1)


def test_cider_of_two_word_captions_by_hand() -> None:
    scores = score_captions(["a b", "x y"], [["a b"], ["c d"]])
    # Orders 1 and 2 match fully, 3 and 4 do not exist: (1 + 1 + 0 + 0) / 4 * 10.
    assert scores.per_image["cider_d"] == pytest.approx([5, 0])
    assert scores.corpus["cider_d"] == pytest.approx(2.5)


def test_cider_has_cosines_and_a_penalty_on_length() -> None:
    scores = score_captions(["a b c", "x"], [["a b c d e f"], ["y"]])
    cosines = [3 / math.sqrt(3 * 6), 2 / math.sqrt(2 * 5), 1 / math.sqrt(1 * 4), 0]
    expected = 10 * sum(cosines) / 4 * math.exp(-(3**2) / (2 * 6**2))
    assert scores.per_image["cider_d"][0] == pytest.approx(expected)


def test_cider_clips_a_repeated_word() -> None:
    scores = score_captions(["a a", "x"], [["a b"], ["y"]])
    unigram = 1 / (2 * math.sqrt(2))  # unclipped it would be 2 / (2 sqrt 2)
    assert scores.per_image["cider_d"][0] == pytest.approx(10 * unigram / 4)


def test_cider_ignores_words_that_every_image_has() -> None:
    scores = score_captions(["a cat", "a dog"], [["a house"], ["a tree"]])
    assert scores.corpus["cider_d"] == 0


def test_cider_of_a_single_image_is_zero() -> None:
    scores = score_one("a black cat on a mat", "a black cat on a mat")
    assert scores.corpus["cider_d"] == 0
    assert scores.corpus["bleu_4"] == pytest.approx(1)


@pytest.mark.parametrize("empty", ["", "  ", ".", "🙂"])
@pytest.mark.parametrize("reference", ["a cat", "."])
def test_a_caption_without_words_scores_zero(empty: str, reference: str) -> None:
    scores = score_captions([empty, "a dog"], [[reference], ["a dog"]])
    assert {name: array[0] for name, array in scores.per_image.items()} == dict.fromkeys(METRICS, 0)


def test_a_whole_corpus_of_empty_captions_scores_zero() -> None:
    scores = score_captions(["", ""], [["a cat"], ["."]])
    assert scores.corpus == dict.fromkeys(METRICS, 0)


def test_case_and_punctuation_do_not_matter() -> None:
    plain = score_captions(["a man is here", "a dog"], [["the man is here"], ["a big dog"]])
    noisy = score_captions(["A man is here.", "A Dog!"], [["The MAN, is here"], ['a "big" dog']])
    assert noisy.corpus == plain.corpus


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([], [], "no images"),
        (["a"], [["a"], ["b"]], "1 hypotheses but 2 sets of references"),
        (["a", "b"], [["a"], []], "image 1 needs a list of at least one reference"),
        (["a"], ["a cat"], "image 0 needs a list"),
    ],
)
def test_unusable_input_is_refused(
    hypotheses: list[str], references: list[list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score_captions(hypotheses, references)


CAPTION = st.lists(st.sampled_from(["a", "cat", "dog", "on", "red", "mat", "."]), max_size=9).map(
    " ".join
)
CORPUS = st.lists(
    st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=4)), min_size=1, max_size=8
)


@given(CORPUS)
def test_scores_stay_in_range(corpus: list[tuple[str, list[str]]]) -> None:
    scores = score_captions([h for h, _ in corpus], [r for _, r in corpus])
    for name in METRICS:
        top = 10 if name == "cider_d" else 1
        values = np.append(scores.per_image[name], scores.corpus[name])
        assert np.all((values >= 0) & (values <= top + 1e-9))


@given(CORPUS, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(
    corpus: list[tuple[str, list[str]]], shuffler: random.Random
) -> None:
    shuffled = list(corpus)
    shuffler.shuffle(shuffled)
    first = score_captions([h for h, _ in corpus], [r for _, r in corpus])
    second = score_captions([h for h, _ in shuffled], [r for _, r in shuffled])
    assert second.corpus == pytest.approx(first.corpus, abs=1e-12)


@given(st.lists(st.sampled_from(["cat", "dog", "on", "red", "mat"]), min_size=4, max_size=12))
def test_a_caption_equal_to_a_reference_has_full_marks(words: list[str]) -> None:
    caption = " ".join(words)
    scores = score_captions([caption, "x"], [["something else", caption], ["y"]])
    for name in METRICS[1:]:
        assert scores.per_image[name][0] == pytest.approx(1)
