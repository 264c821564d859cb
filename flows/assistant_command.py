"""Finding the published assistant, and whether it can use a picture."""

from pathlib import Path

from model.assistant import Assistant, load_assistant
from model.decoding import KINDS, BadImageError, decode_image
from pipeline.devices import pick_device
from pipeline.errors import PipelineError
from pipeline.gate import published_manifest
from pipeline.settings import Settings
from storage.artifacts import ArtifactStore


def open_assistant(settings: Settings, bundle: Path | str | None) -> Assistant:
    """Return the assistant of a bundle, or else the one that the store's pointer names.

    Args:
        settings: Store and device.
        bundle: A folder or an `hf://` address.

    Raises:
        PipelineError: Nothing is published yet.
    """
    device = pick_device(settings)
    if bundle is not None:
        return load_assistant(bundle, device)
    store = ArtifactStore(settings.store, settings.work / "cache", settings.cache_bytes)
    manifest = published_manifest(store)
    artifact = store.artifact(manifest)
    for name in artifact.names:
        artifact.path(name)
    return Assistant(artifact.path("bundle.json").parent, device)


def check_picture(assistant: Assistant, path: Path, data: bytes) -> None:
    """Refuse a picture by its name before any of several is looked at.

    Raises:
        PipelineError: The picture cannot be used.
    """
    try:
        decode_image(data, assistant.card["max_pixels"])
    except BadImageError as error:
        foreign = error.reason in ("unsupported format", "not an image")
        # Of a foreign file the detail is only how it begins, which tells a person nothing.
        fault = error.reason if foreign else str(error)
        raise PipelineError(f"{path}: {fault}", f"give a {KINDS}" if foreign else "") from None
