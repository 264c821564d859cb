"""The published assistant in a format of others: refused where it does not fit, else converted."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from model.errors import ModelError
from pipeline.errors import PipelineError
from pipeline.publishing.export import Lineage
from pipeline.publishing.export_card import HowToLoad, export_card
from pipeline.publishing.export_obstacles import Foreign, obstacles_of_bundle
from storage.clones import clone_folder
from storage.store.artifacts import Artifact

_HOLDER = {"llava": "transformers' LLaVA", "gguf": "llama.cpp"}


def write_converted(
    lineage: Lineage,
    folder: Path,
    style: Foreign,
    convert: Callable[[Path, Path], HowToLoad],
) -> None:
    """Write the published assistant in another format, with its card, into an empty folder.

    Args:
        lineage: The assistant.
        folder: The folder.
        style: The format.
        convert: Is given the bundle's folder and the one to write into; returns how the result is
            loaded.

    Raises:
        PipelineError: The format cannot hold the model, or its tokenizer does not fit.
        StorageError: An artifact is damaged or cannot be read.
    """
    published = lineage.store.artifact(lineage.manifests["publish"])
    obstacles = obstacles_of_bundle(published, lineage.recipe, style)
    plain = f"or export without --format {style}"
    if obstacles:
        raise PipelineError(
            f"{_HOLDER[style]} cannot hold this assistant",
            f"{'; '.join(obstacles)}; train again with that, {plain}",
        )
    with tempfile.TemporaryDirectory(prefix=".converted-", dir=folder.parent) as work:
        bundle = Path(work)
        _copy_bundle(published, bundle)
        try:
            loading = convert(bundle, folder)
        except ModelError as error:
            raise PipelineError(
                error.message, f"choose another backbones.lm_repository, {plain}"
            ) from None
        readme = (bundle / "README.md").read_text("utf-8")
    provenance = lineage.provenance()
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1, sort_keys=True))
    card = export_card(readme, provenance, loading)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _copy_bundle(published: Artifact, bundle: Path) -> None:
    for part in ("clip", "lm"):
        clone_folder(published.directory(part), bundle / part)
    for file in ("bundle.json", "vision_prefix.json", "vision_prefix.safetensors", "README.md"):
        (bundle / file).write_bytes(Path(published.path(file)).read_bytes())
