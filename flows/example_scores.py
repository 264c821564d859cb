"""Scores of single predictions, so that a page can show the best, the worst and the failures."""

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.catalog.catalog import Catalog
from pipeline.evaluation.intervals import Interval, mean_interval
from pipeline.evaluation.pairing import Asked, scores_by_question
from pipeline.evaluation.scorers.captions import score_captions

Row = dict[str, Any]
MAIN = "finetune"  # the model that is published
METRIC_OF = {"caption": "CIDEr-D", "answer": "accuracy"}  # metric of each kind
_SQL = "SELECT * FROM predictions WHERE stage = $stage ORDER BY prediction_id"


def scored_predictions(catalog: Catalog, stage: str = MAIN) -> list[Row]:
    """Return a model's predictions; captions without a score get their CIDEr-D.

    CIDEr-D weighs words by how rare they are in the references of all images, so a caption is
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
            scores = score_captions(
                [row["prediction"] for row in captions], [row["references"] for row in captions]
            ).per_image["cider_d"]
            for row, score in zip(captions, scores, strict=True):
                row["score"] = float(score)
    return rows


def scores_of(rows: Iterable[Row], kind: str, condition: str) -> dict[Asked, float]:
    """Return the scores of one kind under one condition, by image and question."""
    return scores_by_question(r for r in rows if r["kind"] == kind and r["condition"] == condition)


def mean(
    values: Sequence[float], images: Sequence[int], seed: int, resamples: int = 500
) -> Interval:
    """Return a mean with its interval over images; with one image there is no interval."""
    return mean_interval(values, seed, resamples, images=images)
