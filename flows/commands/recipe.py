"""`phivision recipe`: every field with its value and its meaning, and recipes side by side."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from flows.commands.options import recipe_of
from flows.printing import print_rows
from pipeline.recipe.presets import PRESETS
from pipeline.recipe.presets import preset as load_preset
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.recipe_file import changes_from, differences, recipe_text


def print_recipe(name: str, changes: Mapping[str, object], style: str) -> None:
    """Print a recipe.

    Args:
        name: Its preset.
        changes: What differs from it, by dotted path.
        style: `table` (one field per line, as `--set` takes them), `yaml` (as `--recipe` takes it)
            or `json` (what differs from the preset, as a deployment's `overrides`).
    """
    recipe = load_preset(name).override(changes)
    if style == "yaml":
        print(recipe_text(name, recipe), end="")
    elif style == "json":
        print(json.dumps(changes_from(load_preset(name), recipe)))
    else:
        print_rows(["field", "value", "meaning"], list(_rows(recipe, "")))


def print_difference(first: str, second: str) -> None:
    """Print the fields in which two presets or recipe files differ."""
    fields = differences(_named(first), _named(second))
    rows = [[path, repr(before), repr(after)] for path, (before, after) in fields.items()]
    print_rows(["field", first, second], rows)


def _named(text: str) -> Recipe:
    return load_preset(text) if text in PRESETS else recipe_of(None, None, Path(text))


def _rows(part: BaseModel, prefix: str) -> Iterator[list[object]]:
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield from _rows(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values()):
            for key, source in value.items():  # the sources of a mixture
                yield from _rows(source, f"{prefix}{name}.{key}.")
        else:
            yield [f"{prefix}{name}", repr(value), field.description or ""]
