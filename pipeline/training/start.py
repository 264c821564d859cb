"""Training that continues from a finished bundle: its projector, with the recipe's models."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model.encoder_table import SECOND, name_of_config
from pipeline.backbones.model_sources import (
    CLIP_CONFIG,
    CONFIG,
    Source,
    address_of,
    find_source,
    inside,
    state_of,
)
from pipeline.engine.stage import SourceState, StageContext
from pipeline.errors import PipelineError
from pipeline.hub.snapshots import Repository, at_commit, commit_of
from pipeline.progress import ConsoleReporter
from pipeline.recipe.parts import PretrainPart
from pipeline.recipe.recipe import Recipe
from storage.errors import redact

_LABEL = "start"
_CARD, _PREFIX, _CONFIG = "bundle.json", "vision_prefix.safetensors", "vision_prefix.json"


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


def fields_of_bundle(address: str) -> dict[str, object]:
    """Return the recipe fields with which training continues from a bundle.

    Only its small files are read. A revision of the Hub becomes the commit that it means now, so
    that the recipe stays repeatable.

    Raises:
        PipelineError: It is not a bundle, it cannot be reached, or a recipe cannot name its
            encoders.
        StorageError: The URL cannot be read.
    """
    source = find_source(address, "main")
    if isinstance(source, Repository):
        source = source._replace(commit=commit_of(source) or "")
    card, prefix = _read(source, _CARD), _read(source, _CONFIG)
    if card is None or prefix is None:
        missing = _CARD if card is None else _CONFIG
        raise PipelineError(
            f"--start: {redact(address)} is not a bundle, it has no {missing}",
            "name a run, or what `phivision export` wrote: its folder, or hf://owner/name",
        )
    template: Mapping[str, Any] = card["template"]
    clip, lm, second = (inside(source, name) for name in ("clip", "lm", SECOND))
    other = _encoder(second)
    return {
        "backbones.kind": "hub",
        "backbones.clip_name": _encoder(clip),
        "backbones.clip_pretrained": address_of(clip),
        "backbones.second_name": other,
        "backbones.second_pretrained": address_of(second) if other else "",
        "backbones.lm_repository": address_of(lm),
        "backbones.lm_revision": "main",
        "features.layer": card["layer"],
        "features.second_layer": card.get("second_layer", card["layer"]),
        "features.patches": card["patches"],
        "examples.template": "auto" if "opening" in template else "plain",
        "examples.user_prefix": template["user_prefix"],
        "examples.assistant_prefix": template["assistant_prefix"],
        "examples.caption_question": template.get("caption_question", ""),
        **{f"pretrain.projector.{name}": value for name, value in prefix["projector"].items()},
        "pretrain.start": address_of(source),
    }


def _no_bundle(place: str) -> PipelineError:
    return PipelineError(
        f"pretrain.start: {place} has no {_PREFIX}", "name a published or exported bundle"
    )


def _source(start: str) -> Source:
    return find_source(start, "main")


def _read(source: Source, name: str) -> dict[str, Any] | None:
    """Return a JSON file of a place, None where there is no such file."""
    from pipeline.backbones.model_files import read_json
    from pipeline.backbones.model_places import place_of

    with TemporaryDirectory(prefix="phivision-") as folder:
        try:
            place = place_of(source, Path(folder) / "fetched", ConsoleReporter())
        except PipelineError:  # no such folder
            return None
        if not place.has(name):
            return None
        place.bring([name], Path(folder))
        return read_json(Path(folder) / name, place.title)


def _encoder(source: Source) -> str:
    """Return how a recipe names the encoder in a folder of a bundle, "" where there is none."""
    if by_timm := _read(source, CONFIG):
        return f"timm/{by_timm['architecture']}"
    written = _read(source, CLIP_CONFIG)
    if written is None:
        return ""
    name = name_of_config(written["model_cfg"])
    if name is None:
        raise PipelineError(
            "--start: a recipe cannot name the bundle's encoder, for example the demo's tiny one",
            "start from a bundle with a published encoder",
        )
    return name
