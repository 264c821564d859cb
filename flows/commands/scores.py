"""`phivision scores`: scores of a run's models on held-out images, beside those of baselines."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.printing import condition_order, metric_name, table_of
from pipeline.catalog.catalog import Catalog
from pipeline.errors import PipelineError
from pipeline.evaluation.shown_metrics import SHOWN_METRICS

Row = dict[str, Any]

# The most informative metrics; the gaps, splits and sums behind them are for `--all`.
MAIN = tuple(name for name, shown in SHOWN_METRICS.items() if shown.main)

_SQL = """
SELECT stage, split, metric, condition, value, low, high, count FROM metrics WHERE run = $run
"""

_BY_SOURCE = """
SELECT * FROM metrics_by_source WHERE stage = 'finetune' AND condition = 'real'
ORDER BY metric, source
"""


def print_scores(catalog: Catalog, *, every: bool = False) -> None:
    """Print the scores of each model under every condition, with their intervals.

    Raises:
        PipelineError: No run has finished.
    """
    run = run_of(catalog)
    with catalog.open("SELECT * FROM metrics") as database:
        rows = database.query(_SQL, {"run": run}).to_pylist()
    shown = [row for row in rows if every or row["metric"] in MAIN]
    print_conditions(run, shown)
    _print_by_source(catalog, every=every)
    if not every:
        more = len({row["metric"] for row in rows} - set(MAIN))
        print(f"{more} more metrics: phivision scores --all")


def _print_by_source(catalog: Catalog, *, every: bool) -> None:
    """Print the scores under the own image for each source of a mixture, if there are several."""
    if not catalog.paths("metrics_by_source"):
        return  # of an earlier version
    with catalog.open(_BY_SOURCE) as database:
        rows = database.query(_BY_SOURCE).to_pylist()
    shown = [row for row in rows if every or row["metric"] in MAIN]
    if not shown:
        return
    print("\nby source of images or conversations, with the own image (model of finetune)")
    lines = [[metric_name(row), row["source"], _half(row), row["count"]] for row in shown]
    Console(soft_wrap=False).print(table_of(["metric", "source", "score", "n"], lines, whole=True))


def run_of(catalog: Catalog) -> str:
    """Return the name of the run that a catalog shows.

    Raises:
        PipelineError: No run has finished.
    """
    if not catalog.runs:
        raise PipelineError(f"no run has finished in {catalog.store.uri}", "`phivision run`")
    return str(catalog.run or catalog.runs[0]["run"])


def print_conditions(run: str, rows: Sequence[Row]) -> None:
    """Print rows of the `metrics` view, one table per model, as wide as the terminal allows.

    A column per condition with whole intervals, or where these do not fit with half their width,
    or where that does not fit either one line per condition.

    Args:
        run: The run that they belong to.
        rows: `stage`, `split`, `metric`, `condition`, `value`, `low`, `high` and `count` of each.
    """
    conditions = condition_order(row["condition"] for row in rows)
    print(f"held-out scores of run {run}")
    by_stage: dict[str, list[Row]] = {}
    for row in rows:
        by_stage.setdefault(row["stage"], []).append(row)
    console = Console(soft_wrap=False)
    tables, note = _that_fit(list(by_stage.values()), conditions, console.width)
    for stage, table in zip(by_stage, tables, strict=True):
        print(f"\nmodel of {stage}")
        console.print(table)
    print(f"\n{note}")


def _that_fit(
    groups: Sequence[Sequence[Row]], conditions: Sequence[str], width: int
) -> tuple[list[Table], str]:
    """Return a table per group, and the note below them."""
    forms = (
        (_interval, "[low, high]: 95 % interval over images"),
        (_half, "±: half a 95 % interval over images; a wider terminal shows both ends"),
    )
    endless = Console(width=10_000)
    for form, note in forms:
        tables = [_by_condition(rows, conditions, form) for rows in groups]
        if all(endless.measure(table).maximum <= width for table in tables):
            return tables, note
    return [_by_line(rows) for rows in groups], "low, high: 95 % interval over images"


def _by_condition(
    rows: Sequence[Row], conditions: Sequence[str], form: Callable[[Row], str]
) -> Table:
    cells: dict[str, dict[str, object]] = {}
    for row in rows:
        row_cells = cells.setdefault(metric_name(row), {"n": row["count"]})
        row_cells[row["condition"]] = form(row)
    heads = [name.replace("_", "\n") for name in conditions]
    lines = [[name, *map(row.get, conditions), row["n"]] for name, row in cells.items()]
    return table_of(["metric", *heads, "n"], lines, whole=True)


def _by_line(rows: Sequence[Row]) -> Table:
    figures = ("value", "low", "high")
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    lines = [
        [metric_name(row), row["condition"], *(_figure(row[name]) for name in figures)]
        for row in sorted(rows, key=lambda row: metrics.index(row["metric"]))
    ]
    return table_of(["metric", "condition", *figures], lines)


def _interval(row: Row) -> str:
    bounds = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{_figure(row['value'])}{bounds}"


def _half(row: Row) -> str:
    if row["low"] is None:
        return _figure(row["value"])
    half = f"{(row['high'] - row['low']) / 2:.2f}"
    return f"{_figure(row['value'])}±{half.removeprefix('0')}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
