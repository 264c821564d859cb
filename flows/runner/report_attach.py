"""The report of a finished run, in Prefect's UI and in Weights & Biases."""

from prefect.artifacts import create_markdown_artifact

from flows.pages.saved import report_after_run, report_name
from flows.runner.generations import COLUMNS, generations
from pipeline.catalog.catalog import Catalog
from pipeline.settings import Settings
from pipeline.training.observers.tracking import RunReport, log_report
from storage.store.artifacts import ArtifactStore

_TEXTS = 16  # of each kind
_SIDE = 224  # pixels
_SCORES = "SELECT metric, condition, value FROM metrics WHERE stage = 'finetune'"


def attach_report(store: ArtifactStore, settings: Settings, run: str) -> None:
    """Draw the report of a run and attach it to Prefect's run and W&B, unless drawing fails."""
    place = report_after_run(store, run)
    if place is None:
        return
    from flows.pages.report import summary_lines

    catalog = Catalog(store, run)
    table = "\n".join(summary_lines(catalog, run))
    link = place if "://" in place else f"file://{place}"
    create_markdown_artifact(
        f"# Report of run {run}\n\n[{place}]({link})\n\n{table}",
        key="report",
        description=f"Report of run {run}: {place}",
    )
    page = store.read(report_name(run))
    if page is not None and settings.wandb != "disabled":
        log_report(settings, wandb_report(catalog, run, page.decode(), link), print)


def wandb_report(catalog: Catalog, run: str, page: str, place: str) -> RunReport:
    """Return what Weights & Biases keeps of a run: its report, main scores, and generations.

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
