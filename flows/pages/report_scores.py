"""The part of a report about how well the models do: conditions, examples, failures."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flows.example_scores import MAIN, METRIC_OF, Row, mean, scores_of
from flows.pages.charts import Estimate, bars, intervals
from flows.pages.vega import COLOURS, Chart
from flows.printing import condition_order, metric_name
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.pairing import difference
from pipeline.evaluation.shown_metrics import SHOWN_METRICS

_SHADES = {"real": COLOURS[0], "shuffled": COLOURS[1], "blind": COLOURS[2]}
_GAP = "_gap"  # ends the name of a metric that is a difference
_CHARTS = 12  # metrics drawn; the table has all
_GROUPS = 14  # bars of one chart
_LEAST = 5  # predictions that a group needs to be drawn


def score_charts(metrics: Sequence[Row]) -> list[Chart]:
    """Return one chart per metric measured under several conditions, the main ones first."""
    by_name: dict[str, list[Row]] = {}
    for row in metrics:
        by_name.setdefault(row["metric"], []).append(row)
    several = [n for n, rows in by_name.items() if len(rows) > 1 and not n.endswith(_GAP)]
    with_interval = [
        name for name in several if any(row["low"] is not None for row in by_name[name])
    ]
    order = dict.fromkeys(
        [*(n for n, shown in SHOWN_METRICS.items() if shown.chart and n in several), *with_interval]
    )
    return [_score_chart(name, by_name[name]) for name in list(order)[:_CHARTS]]


def _score_chart(name: str, rows: Sequence[Row]) -> Chart:
    conditions = condition_order(row["condition"] for row in rows)
    ordered = sorted(rows, key=lambda row: (row["stage"], conditions.index(row["condition"])))
    return intervals(
        SHOWN_METRICS[name].label if name in SHOWN_METRICS else _label(name),
        [
            Estimate(
                f"{row['stage']} · {row['condition']}".replace("_", " "),
                row["value"],
                row["low"],
                row["high"],
                _SHADES.get(row["condition"], COLOURS[6]),
            )
            for row in ordered
        ],
    )


def _label(metric: str) -> str:
    name = metric.replace("_", " ")
    return f"{name[:1].upper()}{name[1:]}"


def score_table(metrics: Sequence[Row]) -> tuple[list[str], list[list[object]]]:
    """Return columns and rows of all metrics, a column per condition, intervals in brackets."""
    conditions = condition_order(row["condition"] for row in metrics)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in metrics:
        bounds = "" if row["low"] is None else f" [{row['low']:.3g}, {row['high']:.3g}]"
        place = cells.setdefault((row["stage"], metric_name(row)), {})
        place[row["condition"]] = f"{row['value']:.3g}{bounds}"
        if row["condition"] == "real" or "n" not in place:  # others may be of fewer images
            place["n"] = f"{row['count']:,}"
    rows: list[list[object]] = [
        [stage, metric, *(values.get(name, "") for name in conditions), values["n"]]
        for (stage, metric), values in cells.items()
    ]
    return ["model", "metric", *conditions, "n"], rows


def vision_gaps(
    metrics: Sequence[Row], rows: Sequence[Row], seed: int, resamples: int
) -> list[dict[str, Any]]:
    """Return by how much the right image is better than each other condition.

    Taken from the metrics where evaluation wrote these gaps, else from the predictions.
    """
    gaps = [
        {"name": shown.label, "other": row["condition"], "gap": row}
        for row in metrics
        for name, shown in SHOWN_METRICS.items()
        if row["stage"] == MAIN
        and shown.kind
        and row["metric"] == f"{name}{_GAP}"
        and row["low"] is not None
    ]
    return gaps or _paired_gaps(rows, seed, resamples)


def _paired_gaps(rows: Sequence[Row], seed: int, resamples: int) -> list[dict[str, Any]]:
    gaps = []
    for shown in (shown for shown in SHOWN_METRICS.values() if shown.kind):
        real = scores_of(rows, shown.kind, "real")
        for other in condition_order({row["condition"] for row in rows} - {"real"}):
            gap = difference(real, scores_of(rows, shown.kind, other), seed, resamples)
            if gap is not None:
                gaps.append({"name": shown.label, "other": other, "gap": asdict(gap)})
    return gaps


def best_and_worst(rows: Sequence[Row], count: int) -> dict[str, list[Row]]:
    """Return groups of predictions with the right image, and those of other conditions beside."""
    real = [row for row in rows if row["condition"] == "real" and row["score"] is not None]
    captions = sorted(
        (row for row in real if row["kind"] == "caption"), key=lambda row: -row["score"]
    )
    answers = [row for row in real if row["kind"] == "answer"]
    groups = {
        "Best captions": captions[:count],
        "Worst captions": captions[::-1][:count],
        "Wrong answers": _spread([row for row in answers if row["score"] < 0.5], count),
        "Right answers": _spread([row for row in answers if row["score"] >= 0.5], count),
    }
    return {title: _beside(chosen, rows) for title, chosen in groups.items() if chosen}


def _spread(rows: list[Row], count: int) -> list[Row]:
    """Return rows from the whole length of a list, not only from its start."""
    step = max(1, len(rows) // max(1, count))
    return rows[::step][:count]


def _beside(chosen: Iterable[Row], rows: Sequence[Row]) -> list[Row]:
    keys = ("kind", "image_id", "question_id")
    others: dict[tuple[Any, ...], list[tuple[str, str]]] = {}
    for row in rows:
        if row["condition"] != "real":
            text = (row["condition"], row["prediction"])
            others.setdefault(tuple(row[key] for key in keys), []).append(text)
    return [{**row, "others": others.get(tuple(row[k] for k in keys), [])} for row in chosen]


def failure_charts(
    rows: Sequence[Row], categories: Mapping[int, Sequence[str]], seed: int
) -> list[Chart]:
    """Return charts of the score by category, kind of question, number of objects and length."""
    real = [row for row in rows if row["condition"] == "real" and row["score"] is not None]
    ways: list[tuple[str, str, Callable[[Row], Sequence[str]]]] = [
        ("category in the image", "any", lambda row: categories.get(row["image_id"], ())),
        ("objects in the image", "any", lambda row: _amount(categories, row)),
        ("start of the question", "answer", lambda row: [_start(row["question"])]),
        ("words of the references", "any", lambda row: [_length(row["references"])]),
    ]
    charts = []
    for name, only, groups in ways:
        for kind, metric in METRIC_OF.items():
            if only in ("any", kind):
                of_kind = [row for row in real if row["kind"] == kind]
                title = f"{kind.capitalize()}s: {metric} by {name}"
                charts += _by_group(title, of_kind, groups, seed)
    return [*charts, *_hallucinations(real)]


def _hallucinations(rows: Sequence[Row]) -> list[Chart]:
    """Return which objects captions name that are not in their image, where that was judged."""
    named = Counter(name for row in rows for name in row.get("hallucinated") or ())
    if not named:
        return []
    drawn = [Estimate(name, count) for name, count in named.most_common(_GROUPS)]
    return [bars("Objects that captions name but are not marked", drawn, "captions")]


def _by_group(
    title: str, rows: Sequence[Row], groups: Callable[[Row], Sequence[str]], seed: int
) -> list[Chart]:
    by_group: dict[str, list[Row]] = {}
    for row in rows:
        for group in groups(row):
            by_group.setdefault(group, []).append(row)
    large = sorted((item for item in by_group.items() if len(item[1]) >= _LEAST), key=_most)[
        :_GROUPS
    ]
    if len(large) < 2:
        return []
    estimates = [(name, len(members), _mean_score(members, seed)) for name, members in large]
    counted = all(name.split(" ")[0].rstrip("+").isdigit() for name, _, _ in estimates)
    order = (lambda e: int(e[0].split(" ")[0].rstrip("+"))) if counted else (lambda e: e[2].value)
    drawn = [
        Estimate(f"{name} ({count})", estimate.value, estimate.low, estimate.high)
        for name, count, estimate in sorted(estimates, key=order)
    ]
    return [bars(title, drawn, "mean and 95 % interval; in brackets: how many")]


def _mean_score(rows: Sequence[Row], seed: int) -> Interval:
    return mean([row["score"] for row in rows], [row["image_id"] for row in rows], seed)


def _most(item: tuple[str, list[Row]]) -> tuple[int, str]:
    return -len(item[1]), item[0]


def _start(question: str) -> str:
    return " ".join(question.split()[:2])


def _amount(categories: Mapping[int, Sequence[str]], row: Row) -> list[str]:
    count = len(categories.get(row["image_id"], ()))
    return [str(count) if count < 10 else "10+"] if row["image_id"] in categories else []


def _length(references: Sequence[str]) -> str:
    words = sorted(len(text.split()) for text in references)
    middle = words[len(words) // 2]
    return str(middle) if middle < 5 else f"{middle // 5 * 5} to {middle // 5 * 5 + 4}"
