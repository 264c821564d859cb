"""From predictions to rows of the `metrics` table, each with its interval where one is honest."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.bootstrap import mean_interval
from pipeline.caption_metrics import score_captions

Row = dict[str, Any]

# BLEU is a ratio over the whole corpus and no mean over pictures, so it gets no such interval.
_MEANS = ("cider_d", "rouge_l")


def normalize_answer(text: str) -> str:
    """Return an answer in lower case, without punctuation, articles and spare blanks."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def score_answer(prediction: str, reference: str) -> float:
    """Return 1.0 if an answer is the expected one after normalization, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def summarize(
    predictions: Sequence[Row],
    likelihood: Mapping[str, tuple[float, int]],
    resamples: int,
    seed: int,
) -> list[Row]:
    """Return the metrics of one stage under one condition.

    Args:
        predictions: Rows of `predictions` of one stage and condition, at least one caption.
        likelihood: Mean negative log-likelihood and number of tokens, by metric name.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.
    """
    place = {key: predictions[0][key] for key in ("stage", "split", "condition")}
    captions = [row for row in predictions if row["kind"] == "caption"]
    answers = [row for row in predictions if row["kind"] == "answer"]
    rows: list[Row] = []

    def add(metric: str, value: float, count: int, values: Any = None) -> None:
        low = high = None
        if values is not None and len(values) > 1:
            interval = mean_interval(values, seed, resamples=resamples)
            low, high = interval.low, interval.high
        rows.append(
            {
                **place,
                "metric": metric,
                "value": float(value),
                "low": low,
                "high": high,
                "count": count,
            }
        )

    scores = score_captions(
        [row["prediction"] for row in captions], [row["references"] for row in captions]
    )
    for name, value in scores.corpus.items():
        values = scores.per_image[name] if name in _MEANS else None
        add(name, value, len(captions), values)
    if answers:
        right = [row["score"] for row in answers]
        add("answer_accuracy", sum(right) / len(right), len(right), right)
    ended = [float(row["ended"]) for row in predictions]
    add("eos_rate", sum(ended) / len(ended), len(ended), ended)
    for name, (value, tokens) in likelihood.items():
        add(name, value, tokens)
    return rows
