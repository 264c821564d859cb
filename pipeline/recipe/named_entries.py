"""Changes to fields of named entries below a mixture, such as `images.source.sources.coco.root`.

A dotted path names one value of one entry, and a recipe file is read as such paths. Here those
below one field become the whole new value of that field.
"""

import json
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from pipeline.recipe.data_sources import MixtureConversations, MixtureImages
from pipeline.recipe.fields import Part

_MIXTURES: Mapping[str, type[Part]] = {
    "images.source": MixtureImages,
    "conversations.source": MixtureConversations,
}
FIELDS = tuple(f"{part}.{name}" for part in _MIXTURES for name in ("sources", "limits"))


def folded(changes: Mapping[str, object], values: Mapping[str, Any]) -> dict[str, object]:
    """Return changes with all paths below a field of named entries as one change of that field.

    Args:
        changes: Values by dotted path.
        values: The recipe before the changes.
    """
    plain = {path: value for path, value in changes.items() if _field_of(path) is None}
    for field in FIELDS:
        below = {
            tuple(path.removeprefix(f"{field}.").split(".", 1)): value
            for path, value in changes.items()
            if _field_of(path) == field
        }
        if not below:
            continue
        whole = parsed(plain.get(field, _present(field, plain, values)), Any)
        if not isinstance(whole, Mapping):
            continue  # refused when the recipe is validated
        entries: dict[str, Any] = {str(name): entry for name, entry in whole.items()}
        # A new kind goes first, as it drops what the entry held.
        for steps, value in sorted(below.items(), key=lambda item: item[0][1:] != ("kind",)):
            _put(entries, field, steps, value)
        plain[field] = entries
    return plain


def _put(entries: dict[str, Any], field: str, steps: tuple[str, ...], value: object) -> None:
    name, *rest = steps
    if not rest:
        entries[name] = parsed(value, Any)
        return
    entry = entries.get(name)
    if not isinstance(entry, dict) or (rest == ["kind"] and entry.get("kind") != value):
        entry = {}
    kind = kinds_of(field).get(str(entry.get("kind")))
    known = kind.model_fields.get(rest[0]) if kind else None
    entries[name] = {**entry, rest[0]: parsed(value, known.annotation if known else Any)}


def kinds_of(field: str) -> dict[str, type[Part]]:
    """Return the classes that an entry of a field may have, by kind; none for plain values."""
    part, _, name = field.rpartition(".")
    if name != "sources":
        return {}
    entry = get_args(_MIXTURES[part].model_fields[name].annotation)[1]
    classes = get_args(get_args(entry)[0])
    return {each.model_fields["kind"].default: each for each in classes}


def parsed(value: object, kind: Any) -> object:
    """Return a text parsed as JSON, or the text itself if only that fits the field's type."""
    if not isinstance(value, str):
        return value
    try:
        said = json.loads(value)
    except json.JSONDecodeError:
        return value
    is_text = not isinstance(said, str) and not _fits(said, kind) and _fits(value, kind)
    return value if is_text else said


def _fits(value: object, kind: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def _field_of(path: str) -> str | None:
    """Return the field of named entries that a path is below, None if it is not below one."""
    return next((field for field in FIELDS if path.startswith(f"{field}.")), None)


def _present(
    field: str, changes: Mapping[str, object], values: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the entries of a recipe that is a mixture already and stays one."""
    part, _, name = field.rpartition(".")
    group, leaf = part.split(".")
    source = values[group][leaf]
    same = changes.get(f"{part}.kind", source["kind"]) == source["kind"]
    return source.get(name, {}) if same else {}
