"""Scores paired by what was asked, so that two models or two conditions can be compared fairly.

What makes a question hard for both cancels in the pair. Questions about one image are hard or
easy together, so intervals draw images, each with all its questions.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.evaluation.intervals import Interval, paired_difference

# Image, question and references. The id of a question is not part of it: it is a row number, which
# may be another in the next run.
Asked = tuple[int, str, tuple[str, ...]]
_LEAST = 2  # fewest images that can be resampled


def scores_by_question(rows: Iterable[Mapping[str, Any]]) -> dict[Asked, float]:
    """Return the scores of the rows of `predictions` that have one, by what was asked."""
    return {
        (row["image_id"], row["question"], tuple(row["references"])): row["score"]
        for row in rows
        if row["score"] is not None
    }


def difference(
    first: Mapping[Asked, float], second: Mapping[Asked, float], seed: int, resamples: int
) -> Interval | None:
    """Return the mean of first minus second over what both were asked.

    Returns:
        The mean with its interval over images, None where both share fewer than two images.
    """
    both = sorted(first.keys() & second.keys())
    images = [asked[0] for asked in both]
    if len(set(images)) < _LEAST:
        return None
    ours, theirs = [first[asked] for asked in both], [second[asked] for asked in both]
    return paired_difference(ours, theirs, seed, resamples, images=images)
