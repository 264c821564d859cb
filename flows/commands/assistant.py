"""Load an assistant, and check whether it can use an image and was trained on similar ones."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.decoding import KINDS, BadImageError, decode_image
from pipeline.engine.devices import pick_device
from pipeline.errors import PipelineError
from pipeline.publishing.gate import published_manifest
from pipeline.settings import Settings
from storage.store.manifest import Manifest

if TYPE_CHECKING:
    from model.assistant import Assistant
    from model.light_assistant import LightAssistant


def open_assistant(settings: Settings, bundle: Manifest | Path | str | None) -> "Assistant":
    """Return the assistant of a bundle, or else the one that the store's pointer names.

    Args:
        settings: Store and device.
        bundle: A folder, an `hf://` address, or the manifest of one in the store.

    Raises:
        PipelineError: Nothing is published yet.
    """
    from model.assistant import load_assistant

    return load_assistant(_place(settings, bundle), pick_device(settings))


def open_light(settings: Settings, bundle: Manifest | str) -> "Assistant | LightAssistant":
    """Return an assistant that takes a second to open where the bundle is small and ordinary.

    Args:
        settings: See `open_assistant`.
        bundle: See `open_assistant`.
    """
    from model.light_assistant import light_assistant

    place = _place(settings, bundle)
    if pick_device(settings) == "cpu" and (light := light_assistant(Path(place))):
        return light
    return open_assistant(settings, bundle)


def _place(settings: Settings, bundle: Manifest | Path | str | None) -> Path | str:
    """Return the folder of a bundle, whose files are then on this machine, or its address."""
    if bundle is not None and not isinstance(bundle, Manifest):
        return bundle
    store = settings.open_store()
    artifact = store.artifact(published_manifest(store) if bundle is None else bundle)
    for name in artifact.names:
        artifact.path(name)
    return artifact.path("bundle.json").parent


def check_image(assistant: "Assistant | LightAssistant", path: Path, data: bytes) -> None:
    """Refuse an unusable image by its name, before any of several images is encoded.

    Raises:
        PipelineError: The image cannot be used.
    """
    try:
        decode_image(data, assistant.card["max_pixels"])
    except BadImageError as error:
        foreign = error.reason in ("unsupported format", "not an image")
        # For a file of another kind the detail is its first bytes, which do not help a user.
        fault = error.reason if foreign else str(error)
        raise PipelineError(f"{path}: {fault}", f"give a {KINDS}" if foreign else "") from None


def look_at(assistant: "Assistant | LightAssistant", path: Path, data: bytes) -> torch.Tensor:
    """Return an image's patches, and warn on stderr if it is unlike the training images.

    Raises:
        BadImageError: The image cannot be used.
    """
    patches = assistant.see(data)
    if warning := assistant.warning(patches):
        print(f"{path}: {warning}", file=sys.stderr, flush=True)
    return patches
