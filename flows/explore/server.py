"""Serve the explorer on loopback."""

from flows.chat.launching import Door, launch, temporary_folder, theme
from flows.chat.limits import MEGABYTE, Limits
from flows.chat.uploads import Uploads
from pipeline.catalog.catalog import Catalog
from pipeline.errors import PipelineError
from pipeline.settings import Settings

# Nothing is uploaded; the folder holds what Gradio shows.
LIMITS = Limits(image_bytes=MEGABYTE, folder_bytes=1024 * MEGABYTE)


def serve_explorer(catalog: Catalog, settings: Settings, port: int) -> None:
    """Serve until interrupted.

    Raises:
        PipelineError: No run has finished.
        OSError: The port is in use.
    """
    if not catalog.runs:
        raise PipelineError(f"no run has finished in {catalog.store.uri}", "`phivision run`")
    run = catalog.run or catalog.runs[0]["run"]
    with temporary_folder() as folder:
        # Gradio reads its environment when it is imported.
        from flows.explore.page import CSS, Explorer, build_page

        page = build_page(Explorer(catalog, settings), f"Run {run}")
        name = f"the explorer of run {run}"
        launch(page, {"theme": theme(), "css": CSS}, name, Door(port=port), Uploads(folder, LIMITS))
