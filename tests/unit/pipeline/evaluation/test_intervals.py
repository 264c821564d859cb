"""Confidence intervals: right width and coverage, repeatable, no answer for broken values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.intervals import Interval, mean_interval, paired_difference


def test_the_interval_has_the_width_of_the_normal_theory() -> None:
    values = np.random.default_rng(3).normal(5, 2, size=900)
    interval = mean_interval(values, seed=0)
    half_width = 1.96 * values.std() / np.sqrt(values.size)
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.value == pytest.approx(half_width, rel=0.1)
    assert interval.value - interval.low == pytest.approx(half_width, rel=0.1)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    samples = np.random.default_rng(4).exponential(1.0, size=(300, 60))
    intervals = [mean_interval(sample, seed=1, resamples=400, level=0.9) for sample in samples]
    covered = np.mean([interval.low <= 1.0 <= interval.high for interval in intervals])
    assert 0.84 <= covered <= 0.94


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = np.arange(50) % 7
    narrow, wide = mean_interval(values, seed=0, level=0.5), mean_interval(values, seed=0)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_seed_alone_decides() -> None:
    values = np.random.default_rng(0).random(3000)  # large enough for several blocks of draws
    assert mean_interval(values, seed=7) == mean_interval(list(values), seed=7)
    assert mean_interval(values, seed=7) != mean_interval(values, seed=8)


def test_equal_values_give_an_empty_interval() -> None:
    assert mean_interval([2.0, 2.0, 2.0], seed=0) == Interval(2.0, 2.0, 2.0)
    assert mean_interval([0.5], seed=0) == Interval(0.5, 0.5, 0.5)


def test_pairing_cancels_what_both_share() -> None:
    shared = np.random.default_rng(1).normal(0, 100, size=200)
    interval = paired_difference(shared + 0.25, shared, seed=0)
    assert interval.low == pytest.approx(0.25)
    assert interval.high == pytest.approx(0.25)


def test_a_difference_changes_its_sign_with_its_sides() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.random(80), generator.random(80)
    forth, back = paired_difference(a, b, seed=5), paired_difference(b, a, seed=5)
    assert back.value == pytest.approx(-forth.value)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 2**31))
def test_the_interval_lies_within_the_values(values: list[float], seed: int) -> None:
    interval = mean_interval(values, seed, resamples=50)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack


def test_values_of_one_image_are_drawn_together() -> None:
    values = np.random.default_rng(5).normal(0, 1, size=40)
    alone = mean_interval(values, seed=0)
    # Twenty questions about each image that are all as hard say no more than one of them.
    asked, images = np.repeat(values, 20), np.repeat(np.arange(40), 20).tolist()
    together = mean_interval(asked, seed=0, images=images)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    independent = mean_interval(asked, seed=0)
    assert together.high - together.low > 4 * (independent.high - independent.low)


def test_an_image_with_more_values_weighs_more() -> None:
    interval = mean_interval([1, 1, 1, 0], seed=0, images=[7, 7, 7, 2])
    assert interval == Interval(0.75, 0.0, 1.0)
    assert mean_interval([1, 0], seed=0, images=[3, 3]) == Interval(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, float("nan"), float("inf")], "2 of 3 values are not finite; the first is number 1"),
        ([], "no values"),
        ([[1.0, 2.0]], "shape"),
    ],
)
def test_unusable_values_are_refused(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values, seed=0)
    with pytest.raises(ValueError, match=message):
        paired_difference(values, values, seed=0)


def test_values_of_other_images_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="3 values cannot be paired with 1"):
        paired_difference([1, 2, 3], [1], seed=0)


def test_every_value_needs_its_image() -> None:
    with pytest.raises(ValueError, match="2 images are named for 3 values"):
        mean_interval([1, 2, 3], seed=0, images=[1, 1])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="resamples"):
        mean_interval([1.0], seed=0, resamples=0)
    with pytest.raises(ValueError, match="level"):
        mean_interval([1.0], seed=0, level=95)
