"""Whether a model can be exported in a format of others, before training and at export."""

import json
from pathlib import Path
from typing import Any, Literal

from model.encoder_table import SECOND
from model.gguf_fit import ARCHITECTURES, gguf_language_obstacle
from model.language_table import line_of
from model.llava_fit import (
    LANGUAGE_FAMILIES,
    encoder_obstacle,
    language_obstacle,
    projector_obstacle,
    second_obstacle,
    tiny_obstacle,
    tower_obstacle,
)
from pipeline.recipe.recipe import Recipe
from storage.store.artifacts import Artifact

Foreign = Literal["llava", "gguf"]
# Why an export that is possible may still give other answers.
_NOTES = {
    "llava": "",
    "gguf": "; llama.cpp gives the same answers once its issue 25814 is solved: see docs/export.md",
}
_FAMILIES = {"llava": LANGUAGE_FAMILIES, "gguf": tuple(ARCHITECTURES)}


def obstacles_of_recipe(recipe: Recipe, style: Foreign) -> list[str]:
    """Return what a format cannot hold of a recipe's model, with the field and value to choose.

    A language model that is not in the table is checked when it is exported.
    """
    obstacles = [projector_obstacle(recipe.pretrain.projector.kind)]
    backbones = recipe.backbones
    if backbones.kind == "tiny":
        obstacles.append(tiny_obstacle() if style == "llava" else "")
    else:
        obstacles += [encoder_obstacle(backbones.clip_name), second_obstacle(backbones.second_name)]
        line = line_of(backbones.lm_repository)
        if line is not None:
            obstacles.append(_language(line.layout, style))
    return [each for each in obstacles if each]


def _language(family: str, style: Foreign) -> str:
    return (language_obstacle if style == "llava" else gguf_language_obstacle)(family)


def plan_line(recipe: Recipe, style: Foreign) -> str:
    """Return the line of `plan` about the export."""
    obstacles = obstacles_of_recipe(recipe, style)
    if not obstacles:
        backbones = recipe.backbones
        known = backbones.kind == "tiny" or line_of(backbones.lm_repository) is not None
        families = "" if known else f", if the language model is {', '.join(_FAMILIES[style])}"
        return f"export --format {style}: possible{families}{_NOTES[style]}"
    return f"export --format {style}: not with this recipe: {'; '.join(obstacles)}"


def obstacles_of_bundle(published: Artifact, recipe: dict[str, Any], style: Foreign) -> list[str]:
    """Return what a format cannot hold of a published model, with the field and value to choose."""

    def read(name: str) -> dict[str, Any]:
        if name not in published.names:
            return {}
        stated: dict[str, Any] = json.loads(Path(published.path(name)).read_text())
        return stated

    backbones = recipe.get("backbones", {})
    family = read("lm/config.json")["model_type"]
    trained_here = style == "llava" and backbones.get("kind") == "tiny" and family == "phi"
    joined = any(name.startswith(f"{SECOND}/") for name in published.names)
    obstacles = [
        projector_obstacle(read("vision_prefix.json")["projector"]["kind"]),
        tower_obstacle(read("clip/open_clip_config.json")),
        second_obstacle(backbones.get("second_name", SECOND) if joined else ""),
        tiny_obstacle() if trained_here else _language(family, style),
    ]
    return [each for each in obstacles if each]
