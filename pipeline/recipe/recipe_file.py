"""Recipes as YAML files: a preset's name and what differs from it, nested or by dotted path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import RecipeError
from pipeline.recipe.recipe import Recipe, flatten

PRESET = "preset"  # the one key that is not a field of the recipe
MAX_BYTES = 2**20
_PLAIN = (str, int, float, bool, type(None))


def read_recipe_file(path: Path) -> tuple[str | None, dict[str, object]]:
    """Return the preset that a file names, if it names one, and its changes by dotted path.

    A change has the same effect as on the command line, so the artifacts have the same identity,
    too.

    Args:
        path: A file as `recipe_text` writes it, or with some of its fields, nested or dotted.

    Raises:
        RecipeError: It cannot be read, or is not a mapping of fields to plain values.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise RecipeError(f"{path}: a recipe has at most {MAX_BYTES} bytes")
        content = yaml.safe_load(text)
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}", "name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path} is not YAML: {reason}") from None
    if not isinstance(content, Mapping) or not content:
        raise RecipeError(f"{path} holds no fields", "`phivision recipe --format yaml` writes all")
    preset = content.get(PRESET)
    if preset is not None and not isinstance(preset, str):
        raise RecipeError(f"{path}: preset is not a name")
    changes = dict(flatten({key: value for key, value in content.items() if key != PRESET}))
    for field, value in changes.items():
        _check(path, field, value)
    return preset, {field: value for field, value in changes.items() if field}


def recipe_text(preset: str, recipe: Recipe) -> str:
    """Return a whole recipe as YAML, which `read_recipe_file` reads."""
    content = {PRESET: preset, **recipe.model_dump(mode="json")}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def differences(first: Recipe, second: Recipe) -> dict[str, tuple[object, object]]:
    """Return the fields in which two recipes differ, by dotted path, None where one lacks it."""
    one, other = dict(first.leaves()), dict(second.leaves())
    return {
        field: (one.get(field), other.get(field))
        for field in {**one, **other}
        if one.get(field) != other.get(field) or (field in one) != (field in other)
    }


def changes_from(preset: Recipe, recipe: Recipe) -> dict[str, object]:
    """Return the changes from one recipe to another, by dotted path, for `Recipe.override`.

    Where a kind differs, all fields of the new kind are among them.
    """
    before, now = dict(preset.leaves()), dict(recipe.leaves())
    changed = [field for field, value in now.items() if (field, value) not in before.items()]
    parts = tuple(field.removesuffix("kind") for field in changed if field.endswith(".kind"))
    return {f: value for f, value in now.items() if f in changed or (parts and f.startswith(parts))}


def _check(path: Path, field: str, value: Any) -> None:
    """Raise RecipeError for values that JSON lacks, such as a date or a mapping in a list."""
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, _PLAIN) or item == {} for item in items):
        raise RecipeError(f"{path}: {field} is {value!r}", "write text in quotes")
