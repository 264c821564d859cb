"""The metrics of each source of a mixture by itself, where a model was tested on several."""

from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.metrics import Metric, answer_metrics, caption_metrics
from pipeline.evaluation.scores import summarize

Row = dict[str, Any]


def by_source(stage: str, rows: Sequence[Row], resamples: int, seed: int) -> list[Row]:
    """Return rows like those of `metrics`, each with its `source`; none for a single source.

    CIDEr-D weighs words by how rare they are among the captions of the same source.
    """
    written = [row for row in rows if row["kind"] in ("caption", "answer")]
    sources = sorted({row["source"] for row in written})
    if len(sources) < 2:
        return []
    scored: list[Row] = []
    for source in sources:
        metrics: dict[str, list[Metric]] = {}
        for condition in dict.fromkeys(row["condition"] for row in written):
            mine = [
                row for row in written if (row["source"], row["condition"]) == (source, condition)
            ]
            captions = [dict(row) for row in mine if row["kind"] == "caption"]
            answers = [row for row in mine if row["kind"] == "answer"]
            metrics[condition] = [
                *(caption_metrics(captions) if captions else ()),
                *(answer_metrics(answers) if answers else ()),
            ]
        summed = summarize(stage, metrics, resamples, seed)
        scored += [{"source": source, **row} for row in summed]
    return scored
