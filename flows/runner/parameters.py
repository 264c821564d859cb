"""Parameters of the flows, as types that Prefect writes into every deployment's schema.

The server checks a run's parameters against that schema before the run exists. The fields are
those of the recipe by dotted path, and those of the settings; they are read from the models, so
nothing is written twice.
"""

import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, TypeAdapter, WithJsonSchema
from pydantic.fields import FieldInfo

from pipeline.engine.dag import DAG
from pipeline.recipe.presets import PRESETS
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings

Preset = Annotated[str, Field(json_schema_extra={"enum": list(PRESETS)})]
StageName = Annotated[str, Field(json_schema_extra={"enum": [stage.name for stage in DAG]})]


def dotted_fields(model: type[BaseModel], prefix: str = "") -> dict[str, list[FieldInfo]]:
    """Return every leaf of a model by dotted path; several where a union's models share a path."""
    by_path: dict[str, list[FieldInfo]] = {}
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        inner = list(_models(info.annotation))
        if not inner:
            by_path.setdefault(path, []).append(info)
        for inner_model in inner:
            for key, fields in dotted_fields(inner_model, f"{path}.").items():
                by_path.setdefault(key, []).extend(fields)
    return by_path


def changes_of(model: type[BaseModel]) -> Any:
    """Return the type of a dictionary of a model's dotted fields, for a deployment's schema.

    The server checks the values of the fields; names that it does not know are left to the flow,
    which names the nearest field. Fields are patterns and not properties, because the server's form
    would draw all of them, and send false for each switch that nobody touched. Below a field of
    named entries, such as `examples.filters`, any one entry is a field, too.
    """
    fields = dotted_fields(model)
    kinds = {f"^{re.escape(path)}$": _field(path, infos) for path, infos in fields.items()}
    kinds |= {
        f"^{re.escape(path)}\\..+$": _entry(infos[0])
        for path, infos in fields.items()
        if get_origin(infos[0].annotation) is dict
    }
    patterns = {key: TypeAdapter(kind).json_schema() for key, kind in kinds.items()}
    return WithJsonSchema({"type": "object", "patternProperties": patterns})


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models an annotation consists of, none where it is a plain value."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _models(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _models(argument)
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


Overrides = Annotated[dict[str, Any], changes_of(Recipe)]
SettingValues = Annotated[dict[str, Any], changes_of(Settings)]
