"""`phivision recipe`: every field with its value and its meaning."""

from collections.abc import Iterator

from pydantic import BaseModel

from flows.printing import print_rows
from pipeline.recipe.recipe import Recipe


def print_recipe(recipe: Recipe) -> None:
    """Print a recipe's fields, one per line, as `--set` takes them."""
    print_rows(["field", "value", "meaning"], list(_rows(recipe, "")))


def _rows(part: BaseModel, prefix: str) -> Iterator[list[object]]:
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield from _rows(value, f"{prefix}{name}.")
        else:
            yield [f"{prefix}{name}", repr(value), field.description or ""]
