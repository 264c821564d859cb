"""Scores of single predictions, so that a page can show the best, the worst and who fails."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.bootstrap import Interval, mean_interval, paired_difference
from pipeline.caption_metrics import score_captions
from storage.catalog import Catalog

Row = dict[str, Any]
MAIN = "finetune"  # the model that is published
MEASURES = {"caption": "CIDEr-D", "answer": "accuracy"}  # what the score of a kind is
_SQL = "SELECT * FROM predictions WHERE stage = $stage ORDER BY prediction_id"


def scored_predictions(catalog: Catalog, stage: str = MAIN) -> list[Row]:
    """Return a model's predictions; captions without a score get their CIDEr-D.

    CIDEr-D weighs words by how rare they are in the references of all pictures, so a caption is
    scored beside the captions of the same condition, not alone.
    """
    with catalog.open(names=("predictions",)) as database:
        if not database.names:
            return []
        rows = database.query(_SQL, {"stage": stage}).to_pylist()
    for condition in dict.fromkeys(row["condition"] for row in rows):
        captions = [
            row
            for row in rows
            if row["condition"] == condition and row["kind"] == "caption" and row["references"]
        ]
        if captions and all(row["score"] is None for row in captions):
            found = score_captions(
                [row["prediction"] for row in captions], [row["references"] for row in captions]
            ).per_image["cider_d"]
            for row, score in zip(captions, found, strict=True):
                row["score"] = float(score)
    return rows


def scores_of(rows: Iterable[Row], kind: str, condition: str) -> dict[tuple[Any, Any], float]:
    """Return the scores of one kind under one condition, by picture and question."""
    return {
        (row["image_id"], row["question_id"]): row["score"]
        for row in rows
        if row["kind"] == kind and row["condition"] == condition and row["score"] is not None
    }


def difference(
    first: Mapping[Any, float], second: Mapping[Any, float], seed: int, resamples: int
) -> Interval | None:
    """Return the mean of first minus second over what both have, None where that is nothing.

    Both are paired by picture and question, so what makes a picture hard for both cancels.
    """
    both = [key for key in first if key in second]
    if len(both) < 2:
        return None
    return paired_difference([first[k] for k in both], [second[k] for k in both], seed, resamples)


def mean(values: Sequence[float], seed: int, resamples: int = 500) -> Interval:
    """Return a mean with its interval; of one value, without any."""
    if len(values) < 2:
        return Interval(values[0], values[0], values[0])
    return mean_interval(values, seed, resamples)
