"""`phivision report` and `browse`: draw pages and save them in the store or to a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flows.waiting import waiting
from pipeline.errors import PipelineError
from storage.store.artifacts import ArtifactStore

if TYPE_CHECKING:
    from pipeline.catalog.catalog import Catalog

DATASET = "reports/dataset.html"
IMAGES = 8  # in each group of examples of a report


def report_name(run: str) -> str:
    """Return the name of a run's report in its store."""
    return f"reports/{run}.html"


def find_report(store: ArtifactStore, run: str) -> str | None:
    """Return where the report of a run is, None where it was never drawn."""
    name = report_name(run)
    return f"{store.uri}/{name}" if name in store.list("reports") else None


def leave_report(
    store: ArtifactStore,
    run: str,
    images: int = IMAGES,
    output: Path | None = None,
    others: Mapping[str, str] | None = None,
) -> str:
    """Draw the report of a run, write it and return where it is.

    Args:
        store: Where the run's artifacts are; the report is put beside them.
        run: Name of the run.
        images: Images in each group of examples.
        output: A file to write to instead.
        others: Runs beside which it is shown, by what they are called; the one before it if None.

    Raises:
        StorageError: An artifact cannot be read, or the report cannot be written.
    """
    from flows.pages.report import write_report

    with waiting(f"drawing the report of run {run}"):
        text = write_report(store, run, images, others)
    if output is not None:
        return _write(output, text)
    store.write(report_name(run), text.encode())
    return f"{store.uri}/{report_name(run)}"


def report_after_run(store: ArtifactStore, run: str) -> str | None:
    """Save the report of a finished run, or print why there is none and return None.

    The run is already made and recorded; an error in its report must not undo that.
    """
    try:
        return leave_report(store, run)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        print(f"no report ({reason}); `phivision report` tries again")
        return None


def leave_browse(catalog: "Catalog", images: int, drops: int, output: Path | None) -> str:
    """Write the page of a dataset, into its store or to a file, and return where it is."""
    from flows.pages.browse import write_browse

    with waiting("drawing the page of the dataset"):
        text = write_browse(catalog, images, drops)
    if output is not None:
        return _write(output, text)
    catalog.store.write(DATASET, text.encode())
    return f"{catalog.store.uri}/{DATASET}"


def _write(path: Path, text: str) -> str:
    if path.is_dir():
        raise PipelineError(f"{path} is a folder", "name an HTML file")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)
