"""Parameters of the flows, as types that Prefect writes into every deployment's schema.

The server checks a run's parameters against that schema before the run exists, and its UI
shows a form made of it. The fields are those of the recipe by dotted path, and those of the
settings; they are read from the models, so nothing is written twice.
"""

import re
import types
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict

from pipeline.engine.dag import DAG
from pipeline.recipe.presets import PRESETS
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings

Preset = Annotated[str, Field(json_schema_extra={"enum": list(PRESETS)})]
StageName = Annotated[str, Field(json_schema_extra={"enum": [stage.name for stage in DAG]})]


def dotted_fields(model: type[BaseModel], prefix: str = "") -> dict[str, list[FieldInfo]]:
    """Return every leaf of a model by dotted path; several where a union's models share a path."""
    found: dict[str, list[FieldInfo]] = {}
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        inner = list(_models(info.annotation))
        if not inner:
            found.setdefault(path, []).append(info)
        for each in inner:
            for key, fields in dotted_fields(each, f"{path}.").items():
                found.setdefault(key, []).extend(fields)
    return found


def optional_fields(name: str, model: type[BaseModel]) -> Any:
    """Return a dictionary type with a model's dotted fields, all optional, and no others.

    Below a field of named entries, such as `examples.filters`, any one entry is a field, too.
    """
    found = dotted_fields(model)
    fields = {path: _field(path, infos) for path, infos in found.items()}
    entries = {
        f"^{re.escape(path)}\\..+$": _entry(infos[0])
        for path, infos in found.items()
        if get_origin(infos[0].annotation) is dict
    }
    made: Any = TypedDict(name, fields, total=False)  # ty: ignore
    # Pydantic has no type for keys that match a pattern; JSON schema, which the server reads, has.
    shape: Any = {
        "additionalProperties": False,
        "patternProperties": {
            key: TypeAdapter(kind).json_schema() for key, kind in entries.items()
        },
    }
    made.__pydantic_config__ = ConfigDict(extra="allow", json_schema_extra=shape)
    return Annotated[made, AfterValidator(partial(_refuse_others, set(fields), entries))]


def _refuse_others(
    fields: set[str], entries: Mapping[str, Any], values: dict[str, Any]
) -> dict[str, Any]:
    """Raise ValueError if a key is neither a field nor an entry of one, or is a wrong entry."""
    for key in values.keys() - fields:
        kinds = [kind for pattern, kind in entries.items() if re.match(pattern, key)]
        if not kinds:
            raise ValueError(f"there is no field '{key}'")
        TypeAdapter(kinds[0]).validate_python(values[key])
    return values


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models an annotation consists of, none where it is a plain value."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _models(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _models(each)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def _entry(info: FieldInfo) -> Any:
    """Return the type of a field's named entries, Any for parts: the recipe checks these itself."""
    kind = get_args(info.annotation)[1]
    return Any if any(_models(kind)) else kind


def _field(path: str, infos: list[FieldInfo]) -> Any:
    """Return one annotation for a field, with its limits, its description and its path as title."""
    texts = dict.fromkeys(info.description for info in infos if info.description)
    about = Field(title=path, description=" ".join(texts) or None)
    if all(get_origin(info.annotation) is Literal for info in infos):
        values = dict.fromkeys(v for info in infos for v in get_args(info.annotation))
        return Annotated[Literal.__getitem__(tuple(values)), about]  # ty: ignore
    choices = dict.fromkeys(_bounded(info) for info in infos)
    return Annotated[Union.__getitem__(tuple(choices)), about]  # ty: ignore


def _bounded(info: FieldInfo) -> Any:
    annotation: Any = info.annotation
    if get_origin(annotation) is dict and _entry(info) is Any:
        annotation = dict[str, dict[str, Any]]
    for limit in info.metadata:
        annotation = Annotated[annotation, limit]
    return annotation


if TYPE_CHECKING:
    Overrides: TypeAlias = dict[str, Any]
    SettingValues: TypeAlias = dict[str, Any]
else:
    Overrides = optional_fields("Overrides", Recipe)
    SettingValues = optional_fields("SettingValues", Settings)
