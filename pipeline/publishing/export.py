"""A published bundle as a repository folder: all that others need to load, judge and repeat it.

The folder is in Hugging Face's layout: `lm/` is a plain language model of transformers with its
tokenizer, `clip/` an open_clip or timm folder, as is `second/` of two encoders,
`vision_prefix.safetensors` the projector, `README.md` the model card and `provenance.json` the
recipe with the digests of all stages.
"""

import json
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.encoder_table import SECOND
from pipeline.errors import PipelineError
from pipeline.hub.snapshots import is_name
from pipeline.publishing.export_card import export_card
from pipeline.publishing.export_loading import Loading
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest

Adapters = Literal["merged", "beside"]

# Fields of the recipe that may hold a local path.
_PLACES = (
    ("images", "source", "root"),
    ("images", "source", "path"),
    ("pretrain", "start"),
    ("conversations", "source", "path"),
    ("backbones", "clip_pretrained"),
    ("backbones", "second_pretrained"),
    ("backbones", "lm_repository"),
)


@dataclass(frozen=True)
class Lineage:
    """A published assistant and all artifacts that went into it.

    Attributes:
        store: Where they are.
        manifests: Their manifests by stage name, `publish` among them.
    """

    store: ArtifactStore
    manifests: dict[str, Manifest]

    @property
    def recipe(self) -> dict[str, Any]:
        """The parts of the recipe that the stages read, by name."""
        parts: dict[str, Any] = {}
        for stage in sorted(self.manifests):
            parts |= self.manifests[stage].payload.get("recipe", {})
        return _without_places(parts)

    def provenance(self) -> dict[str, Any]:
        """Return recipe, digests and versions as plain values."""
        return {
            "recipe": self.recipe,
            "stages": {
                stage: {
                    "fingerprint": manifest.fingerprint,
                    "digest": manifest.digest,
                    "inputs": manifest.payload.get("inputs", {}),
                    "packages": manifest.packages,
                    "commit": manifest.commit,
                    "summary": manifest.summary,
                }
                for stage, manifest in sorted(self.manifests.items())
            },
        }


def trace(store: ArtifactStore, published: Manifest) -> Lineage:
    """Return a published assistant with everything it was made from.

    An input that is no longer in the store is left out; artifacts made from it have its digest.
    """
    manifests: dict[str, Manifest] = {}
    waiting = [published]
    while waiting:
        manifest = waiting.pop()
        if manifest.stage in manifests:
            continue
        manifests[manifest.stage] = manifest
        for stage, digest in manifest.payload.get("inputs", {}).items():
            waiting += [m for m in store.manifests(stage) if m.digest == digest][:1]
    return Lineage(store, manifests)


@contextmanager
def new_folder(target: Path) -> Generator[Path]:
    """Yield a folder to write into; it is moved to the target at the end, unless there is an error.

    Raises:
        PipelineError: The target is not empty.
    """
    is_there = target.is_dir()
    if any(target.iterdir()) if is_there else target.exists():
        raise PipelineError(f"{target} is not empty", "name a new folder")
    place = target if is_there else target.parent
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=place) as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        yield whole
        if not is_there:
            whole.rename(target)
            return
        for part in whole.iterdir():  # the folder may be a mount, or a current folder
            part.rename(target / part.name)


def write_repository(
    lineage: Lineage, folder: Path, adapters: Adapters, name: str | None = None
) -> None:
    """Write the repository of a published assistant into an empty folder.

    Raises:
        PipelineError: There are no separate adapters.
        StorageError: An artifact is damaged or cannot be read.
    """
    artifact = lineage.store.artifact(lineage.manifests["publish"])
    if adapters == "beside":
        _check_adapters(lineage)
    for file in artifact.names:
        if adapters == "merged" or not file.startswith("lm/"):
            _copy(artifact.path(file), folder / file)
    card = json.loads((folder / "bundle.json").read_text())
    if adapters == "beside":
        card["adapter"] = _write_beside(lineage, folder)
        (folder / "bundle.json").write_text(json.dumps(card, indent=1, sort_keys=True))
    provenance = lineage.provenance()
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1, sort_keys=True))
    projector = json.loads((folder / "vision_prefix.json").read_text())["projector"]["kind"]
    readme = folder / "README.md"
    by_open_clip = (folder / "clip" / "open_clip_config.json").is_file()
    alone = by_open_clip and not (folder / SECOND).is_dir()
    loading = Loading(name, projector, alone, beside=adapters == "beside")
    card_text = export_card(readme.read_text("utf-8"), provenance, loading)
    readme.write_text(card_text, encoding="utf-8")


def _check_adapters(lineage: Lineage) -> None:
    finetune = lineage.manifests.get("finetune")
    if finetune is None or "backbones" not in lineage.manifests:
        raise PipelineError(
            "the training behind this assistant is no longer in the store",
            "export with --lora merged, or run the pipeline again",
        )
    if finetune.payload["recipe"]["finetune"]["method"] != "lora":
        raise PipelineError(
            "this assistant's language model was finetuned as a whole: it has no adapters",
            "export with --lora merged, or train with --set finetune.method=lora",
        )


def _write_beside(lineage: Lineage, folder: Path) -> dict[str, str]:
    """Write `lm/` before finetuning and `adapter/`; return what `bundle.json` says of it."""
    from safetensors.torch import load_file  # torch is needed for this only

    from model.adapters import save_adapter

    finetune = lineage.store.artifact(lineage.manifests["finetune"])
    backbones = lineage.store.artifact(lineage.manifests["backbones"])
    for name in backbones.names:
        if name.startswith("lm/"):
            _copy(backbones.path(name), folder / name)
    part = finetune.manifest.payload["recipe"]["finetune"]
    save_adapter(
        load_file(finetune.path("adapters.safetensors")),
        folder / "adapter",
        rank=part["lora_rank"],
        alpha=part["lora_alpha"],
        dropout=part["lora_dropout"],
        targets=part["lora_targets"],
    )
    # The type in which finetuning merged them; merging in another one would round differently.
    config = json.loads(finetune.path("lm/config.json").read_text())
    return {"dtype": config.get("dtype") or config.get("torch_dtype") or "float32"}


def _without_places(parts: dict[str, Any]) -> dict[str, Any]:
    """Return recipe parts without the folders of the machine that ran them."""
    shown = json.loads(json.dumps(parts))
    for *parents, field in _PLACES:
        node = shown
        for key in parents:
            node = node.get(key, {})
        place = node.get(field, "")
        on_hub = field in ("lm_repository", "start") and is_name(place)
        if place and not on_hub and (place.startswith("file:") or "://" not in place):
            node[field] = Path(place).name
    return shown


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
