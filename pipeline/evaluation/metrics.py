"""Metrics as sums over images, so that every one of them can have a paired interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.data.spaceless import words
from pipeline.evaluation.intervals import Statistic
from pipeline.evaluation.likelihood import Nats
from pipeline.evaluation.scorers.captions import MAX_ORDER, bleu, score_captions
from pipeline.evaluation.scorers.pope import SETS
from pipeline.evaluation.scorers.vqa import answer_type

Row = dict[str, Any]
Totals = NDArray[np.float64]
_REPEATED = 4  # words of the n-grams that may repeat (Welleck et al. 2020, seq-rep-4)


@dataclass(frozen=True)
class Metric:
    """One metric under one condition.

    Attributes:
        metric: Its name.
        images: The image of each row; several rows may be about one.
        parts: What each row adds to each sum, [row, part].
        statistic: Computes the metric from the sums.
        count: Predictions or tokens that it covers.
        better: 1 where more is better, -1 where less is, 0 where neither is.
        split: The split of the images.
    """

    metric: str
    images: Sequence[int]
    parts: Totals
    statistic: Statistic
    count: int
    better: int
    split: str = "test"


def ratio(
    metric: str, images: Sequence[int], above: ArrayLike, below: ArrayLike, better: int = 1
) -> Metric:
    """Return a metric that divides one sum by another; its count is the denominator."""
    parts = np.stack([np.asarray(above, float), np.asarray(below, float)], axis=1)
    return Metric(metric, images, parts, _divide, int(parts[:, 1].sum()), better)


def mean(metric: str, images: Sequence[int], values: ArrayLike, better: int = 1) -> Metric:
    """Return a metric that is the mean of its rows."""
    return ratio(metric, images, values, np.ones(len(images)), better)


def caption_metrics(rows: Sequence[Row]) -> list[Metric]:
    """Return the metrics of captions: CIDEr-D, BLEU, ROUGE-L, lengths, repetition, CHAIR.

    It also writes each caption's CIDEr-D into its row as `score`.
    """
    texts = [row["prediction"] for row in rows]
    scores = score_captions(texts, [row["references"] for row in rows])
    images = [row["image_id"] for row in rows]
    for row, score in zip(rows, scores.per_image["cider_d"].tolist(), strict=True):
        row["score"] = score
    metrics = [mean(name, images, scores.per_image[name]) for name in ("cider_d", "rouge_l")]
    for order in range(MAX_ORDER):
        name = f"bleu_{order + 1}"
        metrics.append(Metric(name, images, scores.counts, _bleu_of(order), len(rows), 1))
    written, nearest = scores.counts[:, -2], scores.counts[:, -1]
    lengths = ratio("length_ratio", images, written, nearest, better=0)
    metrics += [lengths, _repetition("repetition", images, texts)]
    known = [row for row in rows if row["mentions"] is not None]
    if known:
        images = [row["image_id"] for row in known]
        wrong = [len(row["hallucinated"]) for row in known]
        metrics.append(ratio("chair_i", images, wrong, [row["mentions"] for row in known], -1))
        metrics.append(mean("chair_s", images, [float(each > 0) for each in wrong], -1))
    return metrics


def greedy_metric(rows: Sequence[Row]) -> Metric:
    """Return the CIDEr-D of the greedy captions beside which others were drawn."""
    scores = score_captions([row["greedy"] for row in rows], [row["references"] for row in rows])
    return mean("greedy_cider_d", [row["image_id"] for row in rows], scores.per_image["cider_d"])


def answer_metrics(rows: Sequence[Row]) -> list[Metric]:
    """Return the accuracy of answers, overall and by expected type, their length, repetition."""
    groups: dict[str, list[Row]] = {"answer_accuracy": list(rows)}
    for row in rows:
        groups.setdefault(f"accuracy_{answer_type(row['references'][0])}", []).append(row)
    metrics = [
        mean(name, [row["image_id"] for row in group], [row["score"] for row in group])
        for name, group in sorted(groups.items())
        if group
    ]
    images, texts = [row["image_id"] for row in rows], [row["prediction"] for row in rows]
    written = [len(words(text)) for text in texts]
    expected = [len(words(row["references"][0])) for row in rows]
    metrics.append(ratio("answer_length_ratio", images, written, expected, better=0))
    return [*metrics, _repetition("answer_repetition", images, texts)]


def presence_metrics(rows: Sequence[Row]) -> list[Metric]:
    """Return POPE's five figures for each set, as `pope_random_accuracy`, …, and over all sets.

    Over all sets a question counts once for every set that asks it, as in POPE's three files:
    objects that are there are in each, so a model that always says no is right half of the time.
    """
    metrics: list[Metric] = []
    for name in (*SETS, None):
        mine = [row for row in rows if name is None or name in row["sets"]]
        images = [row["image_id"] for row in mine]
        cells = np.array([_cell(row) for row in mine]).reshape(len(mine), 4)
        if name is None:
            cells *= np.array([[len(row["sets"])] for row in mine])
        start = "pope" if name is None else f"pope_{name}"
        for figure, (statistic, better) in _PRESENCE.items():
            if name is not None or figure in ("accuracy", "f1"):
                metric = f"{start}_{figure}"
                metrics.append(Metric(metric, images, cells, statistic, len(mine), better))
    return metrics


def likelihood_metrics(by_metric: dict[str, list[Nats]]) -> list[Metric]:
    """Return mean nats per token, by metric name; less is better."""
    return [
        ratio(
            name,
            [each.image_id for each in nats],
            [each.nats for each in nats],
            [each.tokens for each in nats],
            better=-1,
        )
        for name, nats in by_metric.items()
        if nats
    ]


def ending_metric(rows: Sequence[Row]) -> Metric:
    """Return the share of texts that the model ended itself."""
    ended = [float(row["ended"]) for row in rows]
    return mean("eos_rate", [row["image_id"] for row in rows], ended, better=0)


def _repetition(metric: str, images: Sequence[int], texts: Sequence[str]) -> Metric:
    pieces = []
    for text in texts:
        said = words(text.lower())
        pieces.append([tuple(said[at : at + _REPEATED]) for at in range(len(said) - _REPEATED + 1)])
    again = [len(each) - len(set(each)) for each in pieces]
    return ratio(metric, images, again, [len(each) for each in pieces], better=0)


def _bleu_of(order: int) -> Statistic:
    return lambda totals: bleu(totals)[..., order]


def _divide(totals: Totals) -> Totals:
    return totals[..., 0] / totals[..., 1]


def _cell(row: Row) -> tuple[float, float, float, float]:
    """True positive, false positive, true negative, false negative."""
    said, true = row["prediction"] == "yes", row["references"][0] == "yes"
    return (
        float(said and true),
        float(said and not true),
        float(not (said or true)),
        float(true and not said),
    )


def _accuracy(t: Totals) -> Totals:
    return (t[..., 0] + t[..., 2]) / t.sum(axis=-1)


def _precision(t: Totals) -> Totals:
    return t[..., 0] / (t[..., 0] + t[..., 1])


def _recall(t: Totals) -> Totals:
    return t[..., 0] / (t[..., 0] + t[..., 3])


def _f1(t: Totals) -> Totals:
    return 2 * t[..., 0] / (2 * t[..., 0] + t[..., 1] + t[..., 3])


def _yes_ratio(t: Totals) -> Totals:
    return (t[..., 0] + t[..., 1]) / t.sum(axis=-1)


_PRESENCE: dict[str, tuple[Statistic, int]] = {
    "accuracy": (_accuracy, 1),
    "precision": (_precision, 1),
    "recall": (_recall, 1),
    "f1": (_f1, 1),
    "yes_ratio": (_yes_ratio, 0),
}
