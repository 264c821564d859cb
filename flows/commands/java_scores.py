"""`phivision scores --java`: METEOR and SPICE of the captions that a run has stored.

They are computed anew each time and never stored, so that no artifact depends on Java.
"""

from typing import Any

from flows.commands.scores import print_conditions, run_of
from flows.example_scores import MAIN
from pipeline.catalog.catalog import Catalog
from pipeline.engine.runs import find_run
from pipeline.errors import PipelineError
from pipeline.evaluation.intervals import mean_interval
from pipeline.evaluation.scorers.java import Captions, meteor, spice

Row = dict[str, Any]
_SQL = """
SELECT condition, prediction, "references" FROM predictions
WHERE stage = $stage AND kind = 'caption' AND len("references") > 0 ORDER BY prediction_id
"""


def print_java_scores(catalog: Catalog) -> None:
    """Print both metrics of the finetuned model's captions and of the baselines.

    SPICE is a mean over captions and has an interval; METEOR adds up counts and has none. METEOR
    is printed even where SPICE does not run.

    Raises:
        PipelineError: No run has finished, or a requirement of the Java programs is missing.
    """
    run = run_of(catalog)
    with catalog.open("SELECT * FROM predictions") as database:
        rows = database.query(_SQL, {"stage": MAIN}).to_pylist()
    if not rows:
        raise PipelineError(f"run {run} has no captions with references", "`phivision run`")
    groups: dict[str, Captions] = {
        condition: [(r["prediction"], r["references"]) for r in rows if r["condition"] == condition]
        for condition in dict.fromkeys(row["condition"] for row in rows)
    }
    scores = [
        _row("meteor", name, len(groups[name]), value) for name, value in meteor(groups).items()
    ]
    recipe = find_run(catalog.store, run)["recipe"]
    try:
        for name, values in spice(groups).items():
            drawn = mean_interval(values, recipe["seed"], recipe["evaluate"]["resamples"])
            scores.append(
                _row("spice", name, len(values), drawn.value, low=drawn.low, high=drawn.high)
            )
    finally:
        print_conditions(run, scores)


def _row(metric: str, condition: str, count: int, value: float, **bounds: float) -> Row:
    fixed = {"stage": MAIN, "split": "test", "metric": metric, "condition": condition}
    return {**fixed, "count": count, "value": value, "low": None, "high": None, **bounds}
