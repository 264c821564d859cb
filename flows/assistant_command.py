"""Finding the published assistant and the pictures it is asked about."""

from pathlib import Path

from model.bundle import Assistant
from pipeline.devices import pick_device
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from storage.artifacts import ArtifactStore
from storage.catalog import Catalog

MAX_BYTES = 64 * 2**20


def open_assistant(settings: Settings, bundle: Path | None) -> Assistant:
    """Return the assistant of a folder, or the one published by the store's latest run.

    Raises:
        PipelineError: Nothing is published yet.
    """
    device = pick_device(settings)
    if bundle is not None:
        return Assistant(bundle, device)
    store = ArtifactStore(settings.store, settings.work / "cache", settings.cache_bytes)
    manifest = Catalog(store).manifest("publish")
    if manifest is None:
        raise PipelineError(
            f"{store.uri} holds no published assistant", "`phivision run` makes one"
        )
    artifact = store.artifact(manifest)
    for name in artifact.names:
        artifact.path(name)
    return Assistant(artifact.path("bundle.json").parent, device)


def read_picture(path: Path) -> bytes:
    """Return a picture file's content.

    Raises:
        PipelineError: There is no such file, or it is too large to be a picture.
    """
    if not path.is_file():
        raise PipelineError(f"{path} is no file", "give the path of a JPEG or PNG")
    if path.stat().st_size > MAX_BYTES:
        raise PipelineError(
            f"{path} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}",
            "give a smaller picture",
        )
    return path.read_bytes()
