"""Confidence intervals of a mean over images, by the percentile bootstrap.

Source: Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13. Images are
drawn with replacement; the interval holds the central share of the resampled means. Nothing is
assumed of the distribution, but the images must be independent, and with fewer than about 20 of
them the interval is too narrow. Metrics that are not means, such as corpus BLEU, precision or F1,
are functions of sums over images: :func:`resampled_totals` gives those sums. The draws are a pure
function of the seed and the number of images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE: Final = 1 << 20  # indices held in memory at a time: 8 MB

# Computes a metric from its sums over images: [..., part] becomes [...].
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A mean, in the unit of its values, and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def mean_interval(
    values: Sequence[float] | NDArray[np.floating],
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
    images: Sequence[int] | None = None,
) -> Interval:
    """The mean of values with its percentile bootstrap interval.

    Args:
        values: shape (values,); at least one, all finite. One image gives an empty interval.
        seed: start of the random draws; equal seeds give equal intervals.
        resamples: how many times the images are drawn again.
        level: share of the resampled means inside the interval, between 0 and 1.
        images: the image of each value; values of one image are drawn together. Without it every
            value is an image of its own.

    Returns:
        The mean of the values themselves, and the two quantiles of the resampled means.

    Raises:
        ValueError: where a value is NaN or infinite, there are none, the shape is not (values,),
            there are more or fewer images than values, or ``resamples`` or ``level`` is out of
            range.
    """
    sample = _checked(values)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    totals = resampled_totals(_sums_and_counts(sample, images), seed, resamples)
    means = totals[:, 0] / totals[:, 1]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(sample.mean()), low=float(low), high=float(high))


def paired_difference(
    a: Sequence[float] | NDArray[np.floating],
    b: Sequence[float] | NDArray[np.floating],
    seed: int,
    resamples: int = 2000,
    images: Sequence[int] | None = None,
) -> Interval:
    """The mean of ``a - b`` over the same images, with its percentile bootstrap interval.

    Both values of an image are drawn together, so what makes an image hard for both cancels. An
    interval that excludes 0 says that the two differ. Both have the shape (values,) and the same
    order of images; the rest is as in :func:`mean_interval`.

    Raises:
        ValueError: where the lengths differ, or as in :func:`mean_interval`.
    """
    first, second = _checked(a), _checked(b)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} values cannot be paired with {second.size}")
    return mean_interval(first - second, seed, resamples, images=images)


def resampled_totals(parts: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Sums over images drawn with replacement, for all parts at once.

    Metrics computed from the same row of sums saw the same images, so their difference is paired.

    Args:
        parts: shape (images, parts); what every image adds to each sum. An image without a value
            adds 0 to the sum and 0 to the count that divides it.
        seed: as in :func:`mean_interval`.
        resamples: how many times the images are drawn again.

    Returns:
        float64 of shape (resamples, parts).
    """
    random = np.random.default_rng(seed)
    images = len(parts)
    totals = np.empty((resamples, parts.shape[1]))
    rows = max(1, _DRAWS_AT_ONCE // images)
    for start in range(0, resamples, rows):
        block = totals[start : start + rows]
        draws = random.integers(images, size=(len(block), images))
        draws += np.arange(len(block))[:, np.newaxis] * images
        times = np.bincount(draws.ravel(), minlength=block.shape[0] * images)
        block[:] = times.reshape(len(block), images).astype(np.float64) @ parts
    return totals


def _checked(values: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise ValueError(f"values must have the shape (values,), not {sample.shape}")
    if not sample.size:
        raise ValueError("no values: there are no images")
    broken = np.flatnonzero(~np.isfinite(sample))
    if broken.size:
        raise ValueError(
            f"{broken.size} of {sample.size} values are not finite; the first is number {broken[0]}"
        )
    return sample


def _sums_and_counts(
    sample: NDArray[np.float64], images: Sequence[int] | None
) -> NDArray[np.float64]:
    """Sum and number of the values of every image, shape (images, 2)."""
    parts = np.stack([sample, np.ones_like(sample)], axis=1)
    if images is None:
        return parts
    if len(images) != sample.size:
        raise ValueError(f"{len(images)} images are named for {sample.size} values")
    names, places = np.unique(images, return_inverse=True)
    sums = np.zeros((len(names), 2))
    np.add.at(sums, places, parts)
    return sums
