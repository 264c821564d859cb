"""Training that continues from a finished bundle: its projector, with the recipe's models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.encoder_table import ENCODERS, SECOND
from pipeline.backbones.model_sources import Source, find_source, state_of
from pipeline.engine.stage import SourceState, StageContext
from pipeline.errors import PipelineError
from pipeline.hub.snapshots import Repository, at_commit
from pipeline.recipe.parts import PretrainPart
from pipeline.recipe.recipe import Recipe

_LABEL = "start"
_PREFIX, _CONFIG = "vision_prefix.safetensors", "vision_prefix.json"


def probe_start(recipe: Recipe) -> SourceState:
    """Return the state of the bundle that pretraining starts from, nothing without one.

    Raises:
        PipelineError, StorageError: As `pipeline.backbones.model_sources.state_of`.
    """
    start = recipe.pretrain.start
    if not start:
        return {}
    source = _source(start)
    if isinstance(source, Path):
        source = source / _PREFIX  # the rest of a bundle is large, and probed elsewhere
        if not source.is_file():
            raise _no_bundle(start)
    return state_of(_LABEL, source, (_PREFIX, _CONFIG))


def bring_prefix(
    context: StageContext, part: PretrainPart, patches: int, width: int
) -> dict[str, Any]:
    """Return the weights of the bundle's prefix, which fit the recipe's projector.

    Args:
        context: Its scratch folder receives the files.
        part: Names the bundle and the projector.
        patches: Patches of an image.
        width: Width of a patch embedding.

    Raises:
        PipelineError: It is not a bundle, or its projector differs from the recipe's.
        StorageError: It cannot be fetched.
    """
    from safetensors.torch import load_file

    from pipeline.backbones.model_places import place_of

    source = _source(part.start)
    if isinstance(source, Repository):
        source = at_commit(source, _LABEL, context.source)
    place = place_of(source, context.scratch, context.report)
    if not (place.has(_PREFIX) and place.has(_CONFIG)):
        raise _no_bundle(place.title)
    folder = context.scratch / _LABEL
    folder.mkdir(exist_ok=True)
    place.bring([_PREFIX, _CONFIG], folder)
    known = json.loads((folder / _CONFIG).read_text())
    wanted = {
        "projector": part.projector.model_dump(mode="json"),
        "vision_width": width,
        "patches": patches,
    }
    if known != wanted:
        field = next(name for name in wanted if known.get(name) != wanted[name])
        raise PipelineError(
            f"pretrain.start: the bundle's {field} is {known.get(field)}, the recipe's is "
            f"{wanted[field]}",
            "choose the same encoders and pretrain.projector as the bundle's; --start does",
        )
    return load_file(folder / _PREFIX)


def fields_of_bundle(path: str) -> dict[str, object]:
    """Return the recipe fields with which training continues from a bundle on this machine.

    Raises:
        PipelineError: It is not a bundle, or a recipe cannot name its encoders.
    """
    folder = Path(path).expanduser()
    if not (folder / "bundle.json").is_file():
        raise PipelineError(
            f"--start: {path} is not a bundle, it has no bundle.json",
            "give the folder of `phivision export`, or of a download of it",
        )
    card = json.loads((folder / "bundle.json").read_text())
    prefix = json.loads((folder / _CONFIG).read_text())
    template: Mapping[str, Any] = card["template"]
    second = folder / SECOND
    return {
        "backbones.kind": "hub",
        "backbones.clip_name": _encoder(folder / "clip"),
        "backbones.clip_pretrained": _place(folder / "clip"),
        "backbones.second_name": _encoder(second) if second.is_dir() else "",
        "backbones.second_pretrained": _place(second) if second.is_dir() else "",
        "backbones.lm_repository": _place(folder / "lm"),
        "backbones.lm_revision": "main",
        "features.layer": card["layer"],
        "features.second_layer": card.get("second_layer", card["layer"]),
        "features.patches": card["patches"],
        "examples.template": "auto" if "opening" in template else "plain",
        "examples.user_prefix": template["user_prefix"],
        "examples.assistant_prefix": template["assistant_prefix"],
        "examples.caption_question": template.get("caption_question", ""),
        **{f"pretrain.projector.{name}": value for name, value in prefix["projector"].items()},
        "pretrain.start": _place(folder),
    }


def _no_bundle(place: str) -> PipelineError:
    return PipelineError(
        f"pretrain.start: {place} has no {_PREFIX}", "name a published or exported bundle"
    )


def _source(start: str) -> Source:
    return find_source(start, "main")


def _place(folder: Path) -> str:
    return str(folder.resolve())


def _encoder(folder: Path) -> str:
    """Return how a recipe names the encoder in a folder of a bundle."""
    by_timm = folder / "config.json"
    if by_timm.is_file():
        return f"timm/{json.loads(by_timm.read_text())['architecture']}"
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    tower = config["vision_cfg"]
    quick = bool(config.get("quick_gelu"))
    for name, line in ENCODERS.items():
        size = (tower.get("image_size"), tower.get("patch_size"), tower.get("width"))
        if size == (line.image, line.patch, line.width) and quick == name.endswith("quickgelu"):
            return name
    raise PipelineError(
        "--start: a recipe cannot name the bundle's encoder, for example the demo's tiny one",
        "start from a bundle with a published encoder",
    )
