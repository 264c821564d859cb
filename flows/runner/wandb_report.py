"""What Weights & Biases keeps of a finished run: its report, main scores, and generations."""

from flows.runner.generations import COLUMNS, generations
from pipeline.catalog.catalog import Catalog
from pipeline.training.observers.tracking import RunReport

_TEXTS = 16  # of each kind
_SIDE = 224  # pixels
_SCORES = "SELECT metric, condition, value FROM metrics WHERE stage = 'finetune'"


def wandb_report(catalog: Catalog, run: str, page: str, place: str) -> RunReport:
    """Return what is kept of a run.

    Raises:
        StorageError: A file cannot be read.
    """
    with catalog.open(names=("metrics",)) as database:
        there = "metrics" in database.names
        scores = database.query(_SCORES, {}).to_pylist() if there else []
    return RunReport(
        name=f"report-{run}",
        page=page,
        place=place,
        scores={f"{row['metric']}_{row['condition']}": row["value"] for row in scores},
        columns=COLUMNS,
        rows=generations(catalog, _TEXTS, _SIDE),
    )
