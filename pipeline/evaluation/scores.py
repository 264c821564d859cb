"""From metrics to rows of the `metrics` table: values, intervals, and what the image is worth.

`X` is a metric's value under a condition. `X_gap` is by how much the real image is better than
that condition: positive always favours the image, even if less of X is better. Its interval is
paired: real and condition use the same resampled images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import resampled_totals
from pipeline.evaluation.metrics import Metric

Row = dict[str, Any]
REAL = "real"
_BOUNDS = (0.025, 0.975)  # of the 95 % intervals


def summarize(
    stage: str, metrics: Mapping[str, Sequence[Metric]], resamples: int, seed: int
) -> list[Row]:
    """Return the rows of one stage, conditions in the given order, each metric before its gaps.

    A metric without a value, such as the precision of a model that never says yes, has no row.
    """
    drawn = _Drawn(metrics, resamples, seed)
    rows: list[Row] = []

    def add(condition: str, metric: str, sample: NDArray[np.float64], of: Metric) -> None:
        if not np.isfinite(sample[0]):
            return
        low, high = drawn.bounds(sample[1:])
        place = {"stage": stage, "split": of.split, "condition": condition, "metric": metric}
        value = {"value": float(sample[0]), "low": low, "high": high, "count": of.count}
        rows.append({**place, **value})

    real = {entry.metric: entry for entry in metrics.get(REAL, ())}
    for condition, measured in metrics.items():
        for entry in measured:
            add(condition, entry.metric, drawn.sample(entry), entry)
        for entry in measured if condition != REAL else ():
            if entry.better and entry.metric in real:
                gap = entry.better * (drawn.sample(real[entry.metric]) - drawn.sample(entry))
                add(condition, f"{entry.metric}_gap", gap, entry)
    return rows


def change(
    metric: str, stage: str, before: Metric, after: Metric, resamples: int, seed: int
) -> list[Row]:
    """Return one row: by how much a metric rose from one model to another, on the same images."""
    measured = {"before": [before], "after": [after]}
    drawn = _Drawn(measured, resamples, seed)
    sample = drawn.sample(after) - drawn.sample(before)
    low, high = drawn.bounds(sample[1:])
    place = {"stage": stage, "split": "test", "condition": "text_only", "metric": metric}
    value = float(sample[0])
    return [{**place, "value": value, "low": low, "high": high, "count": after.count}]


class _Drawn:
    """All metrics of a stage on the same resampled images."""

    def __init__(self, metrics: Mapping[str, Sequence[Metric]], resamples: int, seed: int) -> None:
        listed = [metric for measured in metrics.values() for metric in measured]
        images = np.unique(np.concatenate([np.asarray(metric.images) for metric in listed]))
        self._single = len(images) < 2
        self._places: dict[int, slice] = {}
        columns, width = [], 0
        for metric in listed:
            sums = np.zeros((len(images), metric.parts.shape[1]))
            np.add.at(sums, np.searchsorted(images, metric.images), metric.parts)
            columns.append(sums)
            self._places[id(metric)] = slice(width, width + sums.shape[1])
            width += sums.shape[1]
        parts = np.concatenate(columns, axis=1)
        # The first row is for the original images.
        self._totals = np.vstack([parts.sum(axis=0), resampled_totals(parts, seed, resamples)])

    def sample(self, metric: Metric) -> NDArray[np.float64]:
        """Return a metric's value, then its value on every resampled set of images."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return metric.statistic(self._totals[:, self._places[id(metric)]])

    def bounds(self, values: NDArray[np.float64]) -> tuple[float | None, float | None]:
        """Return the bounds of an interval, None where nothing can be resampled."""
        values = values[np.isfinite(values)]
        if self._single or not len(values):
            return None, None
        low, high = np.quantile(values, _BOUNDS)
        return float(low), float(high)
