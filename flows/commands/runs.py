"""`phivision runs` and `phivision diff`: what was run, how it scored, and what made it differ."""

import json
from typing import Any, Literal

from flows.printing import print_rows, when
from pipeline.engine.runs import compare_runs, find_run, metric_rows
from pipeline.errors import PipelineError
from pipeline.evaluation.shown_metrics import SHOWN_METRICS
from storage.store.artifacts import ArtifactStore
from storage.store.published import published, read_history
from storage.store.runs import read_refs, read_runs

HEADLINE = {name: shown.heading for name, shown in SHOWN_METRICS.items() if shown.heading}


def print_runs(
    store: ArtifactStore, style: Literal["table", "json"], sort: str, limit: int
) -> None:
    """Print the finished runs, newest first or the best first.

    Raises:
        PipelineError: No run has that metric.
        StorageError: A record cannot be read.
    """
    records = read_runs(store)
    if not records and style == "table":
        print(f"no run has finished in {store.uri}")
        return
    rows = [_row(store, record) for record in (records if sort else records[:limit])]
    if sort:
        rows = _sorted(rows, sort)[:limit]
    _mark(store, rows)
    if style == "json":
        print(json.dumps(rows, indent=1))
        return
    names = [name for name in HEADLINE if any(name in row["metrics"] for row in rows)]
    if sort and sort not in names:
        names.append(sort)
    lines = [
        [
            *(row["run"], row["finished"][5:16], row["recipe"].removeprefix("phivision-")),
            f"{row['seconds']:,.0f}",
            *(_figure(row["metrics"].get(name)) for name in names),
            ", ".join(each for each in (row["decision"], *row["tags"]) if each),
            row["made"][0] if len(row["made"]) == 1 else f"{len(row['made'])} stages",
        ]
        for row in rows
    ]
    heads = [HEADLINE.get(name, name) for name in names]
    columns = ["run", "UTC", "recipe", "s", *heads, "state, tags", "made"]
    print_rows(columns, lines, unbroken=("run",))  # names are copied into other commands
    if len(records) > len(rows):
        print(f"{len(records) - len(rows)} more: --limit {len(records)}")


def _row(store: ArtifactStore, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": record["run"],
        "finished": when(record["created"]),
        "recipe": str(record["recipe"].get("publish", {}).get("name", "")),
        "seconds": record["seconds"],
        "made": record["made"],
        "metrics": {
            row["metric"]: row["value"]
            for row in metric_rows(store, record)
            if (row["stage"], row["condition"]) == ("finetune", "real")
        },
    }


def _sorted(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return rows by a metric, best first; those without it last."""
    known = {name for row in rows for name in row["metrics"]}
    if metric not in known:
        raise PipelineError(
            f"no run has the metric '{metric}'", f"metrics: {', '.join(sorted(known)) or 'none'}"
        )
    sign = 1 if metric.endswith("nll") or metric.startswith("chair") else -1
    return sorted(
        rows,
        key=lambda row: (metric not in row["metrics"], sign * row["metrics"].get(metric, 0)),
    )


def _mark(store: ArtifactStore, rows: list[dict[str, Any]]) -> None:
    """Add to each row what was decided about its publication, and its tags."""
    history = read_history(store)
    now = published(history)
    last: dict[str, str] = {}
    for entry in history:
        last.setdefault(entry.run, "in use" if entry is now else entry.action)
    tags: dict[str, list[str]] = {}
    for name, run in sorted(read_refs(store).items()):
        tags.setdefault(run, []).append(name)
    for row in rows:
        # A variant of `compare` is not judged.
        row["decision"], row["tags"] = last.get(row["run"], ""), tags.get(row["run"], [])


def print_diff(store: ArtifactStore, before: str, after: str, *, every: bool) -> None:
    """Print in which recipe fields, digests and metrics two runs differ.

    Args:
        store: The store.
        before: A run: its name, the start of it, or its tag.
        after: Another one.
        every: Whether to print all metrics, not just the main ones.

    Raises:
        PipelineError: A run does not exist.
    """
    changes = compare_runs(store, before, after)
    if not changes:
        print(f"{before} and {after} do not differ")
        return
    plain = [change for change in changes if every or change.kind != "metric"]
    rows = [[c.kind, c.name, _cell(c.kind, c.before), _cell(c.kind, c.after)] for c in plain]
    rest = len(changes) - len(plain)
    if not every:
        sides = [_headline(store, run) for run in (before, after)]
        shown = [name for name in HEADLINE if sides[0].get(name) != sides[1].get(name)]
        rows += [["metric", name, *(side.get(name) for side in sides)] for name in shown]
    print_rows(["kind", "name", before, after], rows)
    if rest:
        print(f"{rest} figures in all differ: phivision diff {before} {after} --all")


def _headline(store: ArtifactStore, run: str) -> dict[str, str]:
    """Return the main metrics of a run's finetuned model, with their 95 % intervals."""
    return {
        row["metric"]: f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        for row in metric_rows(store, find_run(store, run))
        if (row["stage"], row["condition"]) == ("finetune", "real")
        and row["metric"] in HEADLINE
        and row["low"] is not None
    }


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _cell(kind: str, value: object) -> object:
    """Return a metric to four digits behind the point; a recipe's own values stay exact."""
    return f"{value:.4f}" if kind == "metric" and isinstance(value, float) else value
