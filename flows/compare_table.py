"""Scores of several runs side by side, each with its interval and its difference to another run."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.example_scores import MAIN, Row, scored_predictions, scores_of
from pipeline.catalog.catalog import Catalog
from pipeline.engine.runs import find_run
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.pairing import difference
from pipeline.evaluation.shown_metrics import SHOWN_METRICS
from storage.store.artifacts import ArtifactStore

COMPARED = {name: shown for name, shown in SHOWN_METRICS.items() if shown.heading}
_SQL = (
    "SELECT metric, value, low, high FROM metrics WHERE run = $run AND stage = $stage "
    "AND condition = 'real'"
)


def real_scores(catalog: Catalog, run: str) -> dict[str, dict[str, float | None]]:
    """Return value, low and high of a run's metrics under the real image, by their names."""
    with catalog.open(names=("metrics",)) as database:
        parameters = {"run": run, "stage": MAIN}
        rows = database.query(_SQL, parameters).to_pylist() if database.names else []
    return {row["metric"]: {key: row[key] for key in ("value", "low", "high")} for row in rows}


def measure(
    store: ArtifactStore, name: str, changes: Mapping[str, object], run: str, first: str
) -> dict[str, Any]:
    """Return what is known of one run, ready for JSON."""
    catalog = Catalog(store, run)
    record = find_run(store, run)
    seed, resamples = record["recipe"]["seed"], record["recipe"]["evaluate"]["resamples"]
    rows = scored_predictions(catalog)
    base = scored_predictions(Catalog(store, first))
    return {
        "variant": name,
        "changes": dict(changes),
        "run": run,
        "made": record["made"],
        "seconds": record["seconds"],
        "metrics": real_scores(catalog, run),
        "differences": {
            metric: _plain(_paired(rows, base, shown.kind, seed, resamples))
            for metric, shown in COMPARED.items()
            if shown.kind and run != first
        },
        "vision_gap": _plain(
            difference(
                scores_of(rows, "caption", "real"),
                scores_of(rows, "caption", "shuffled"),
                seed,
                resamples,
            )
        ),
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return variants as a table in Markdown; intervals hold 95 %."""
    shown = [metric for metric in COMPARED if any(metric in row["metrics"] for row in rows)]
    head, against = ["variant"], f"against {_escaped(rows[0])}"
    for metric in shown:
        head += [COMPARED[metric].heading, *([against] if COMPARED[metric].kind else [])]
    head += ["CIDEr-D real − shuffled", "stages made", "seconds"]  # noqa: RUF001 - a minus
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for row in rows:
        cells = [_escaped(row)]
        for metric in shown:
            cells.append(estimate(row["metrics"].get(metric)))
            if COMPARED[metric].kind:
                cells.append(estimate(row["differences"].get(metric), sign=True))
        cells += [
            estimate(row["vision_gap"], sign=True),
            str(len(row["made"])),
            f"{row['seconds']:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _paired(
    rows: Sequence[Row], base: Sequence[Row], kind: str, seed: int, resamples: int
) -> Interval | None:
    ours, theirs = scores_of(rows, kind, "real"), scores_of(base, kind, "real")
    return difference(ours, theirs, seed, resamples)


def _escaped(row: Mapping[str, Any]) -> str:
    return row["variant"].replace("|", "\\|")


def _plain(interval: Interval | None) -> dict[str, float] | None:
    if interval is None:
        return None
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def estimate(interval: Mapping[str, float | None] | None, *, sign: bool = False) -> str:
    """Return a value with its interval in brackets where it has one; "" without a value."""
    if interval is None or interval["value"] is None:
        return ""
    text = f"{interval['value']:+.3f}" if sign else f"{interval['value']:.3f}"
    low, high = interval["low"], interval["high"]
    return text if low is None else f"{text} [{low:.3f}, {high:.3f}]"
