"""`phivision scores`: what a run's models do on held-out pictures, beside what floors do."""

from collections.abc import Sequence
from typing import Any

from flows.tables import condition_order, print_rows
from pipeline.errors import PipelineError
from storage.catalog import Catalog

# What says most; the gaps, splits and sums behind them are for `--all`.
MAIN = (
    "cider_d",
    "bleu_4",
    "rouge_l",
    "answer_accuracy",
    "pope_accuracy",
    "chair_i",
    "image_choice",
    "eos_rate",
    "nll",
)

_SQL = """
SELECT stage, metric, condition, value, low, high, count FROM metrics WHERE run = $run
"""


def print_scores(catalog: Catalog, *, every: bool = False) -> None:
    """Print one row per model and metric, one column per condition, intervals in brackets.

    Args:
        catalog: Of the store.
        every: Print all metrics, not just those that say most.

    Raises:
        PipelineError: No run has finished.
    """
    run = run_of(catalog)
    with catalog.open("SELECT * FROM metrics") as database:
        rows = database.query(_SQL, {"run": run}).to_pylist()
    shown = [row for row in rows if every or row["metric"] in MAIN]
    print_conditions(run, shown)
    if not every:
        more = len({row["metric"] for row in rows} - set(MAIN))
        print(f"{more} more metrics: phivision scores --all")


def run_of(catalog: Catalog) -> str:
    """Return the name of the run that a catalog shows.

    Raises:
        PipelineError: No run has finished.
    """
    if not catalog.runs:
        raise PipelineError(f"no run has finished in {catalog.store.uri}", "`phivision run`")
    return str(catalog.run or catalog.runs[0]["run"])


def print_conditions(run: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of the `metrics` view as a table whose columns are conditions.

    Args:
        run: The run they are of.
        rows: `stage`, `metric`, `condition`, `value`, `low`, `high` and `count` of each.
    """
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else ""
        key = (row["stage"], row["metric"])
        cells.setdefault(key, {"n": row["count"]})[row["condition"]] = (
            f"{row['value']:.3f}{interval}"
        )
    conditions = condition_order(row["condition"] for row in rows)
    print(f"held-out scores of run {run}: {' / '.join(conditions)}")
    print_rows(
        ["model", "metric", *conditions, "n"],
        [
            [*key, *(found.get(name) for name in conditions), found["n"]]
            for key, found in cells.items()
        ],
    )
