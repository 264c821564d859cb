"""What bears identity: every leaf that a stage reads, no setting, and no order."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline.engine.dag import DAG
from pipeline.engine.materialize import payload_of
from pipeline.engine.stage import Stage
from pipeline.errors import RecipeError
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from storage.store.manifest import fingerprint_of

PRESETS = {name: preset(name) for name in ("demo", "coco")}
# The choices that no preset makes, so that each kind of each union is looked at.
OTHER_KINDS = {
    "folder": {"images.source": {"kind": "folder", "root": "/data/coco"}},
    "lcs558k": {
        "images.source": {
            "kind": "lcs558k",
            "repository": "owner/name",
            "annotations": "chat.json",
            "images": "images.zip",
            "revision": "main",
            "test_share": 0.01,
        }
    },
    "file": {"conversations.source": {"kind": "file", "path": "/data/a.json", "sha256": "0" * 64}},
    "lora": {"finetune.method": "lora", "finetune.lora_rank": 4, "finetune.lora_alpha": 8},
    "scheduled_sampling": {
        "pretrain.objective": {
            "kind": "scheduled_sampling",
            "decay": "linear",
            "start_rate": 1.0,
            "end_rate": 0.5,
            "sharpness": 10.0,
            "passes": 1,
        }
    },
    "sparse_mixture": {
        "pretrain.projector": {
            "kind": "sparse_mixture",
            "reducer": "linear",
            "tokens": 30,
            "experts": 4,
            "layers": 1,
            "active": 2,
            "balance_weight": 0.01,
        }
    },
}


def dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides of single fields; a mapping stands for the fields below its path."""
    return {
        f"{path}.{field}" if field else path: each
        for path, value in values.items()
        for field, each in (value.items() if isinstance(value, dict) else [("", value)])
    }


for kind, values in OTHER_KINDS.items():
    base = "coco" if "images.source" in values else "demo"
    PRESETS[kind] = PRESETS[base].override(dotted(values))
LEAVES = [(name, path) for name, recipe in PRESETS.items() for path, _ in recipe.leaves()]
SOMETHING = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v * 0.5 + 0.123}


def other(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, list | tuple):
        return [*value, "one more"]
    return SOMETHING.get(type(value), lambda v: f"{v}x")(value)


def change(model: Any, path: list[str]) -> Any:
    """Return a model with one leaf changed, whether or not the recipe would be valid."""
    head, *rest = path
    value = getattr(model, head) if isinstance(model, BaseModel) else model[head]
    new = change(value, rest) if rest else other(value)
    if isinstance(model, BaseModel):
        return model.model_copy(update={head: new})
    return {**model, head: new}


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """Return the fingerprint of every stage with the same inputs; code and source left out."""
    return {stage.name: fingerprint_of(payload_without_code(stage, recipe)) for stage in DAG}


def payload_without_code(stage: Stage, recipe: Recipe) -> dict[str, Any]:
    bare = replace(stage, probe=None)
    return {**payload_of(bare, recipe, {}), "code": {}}


@pytest.mark.parametrize("name", PRESETS)
def test_every_leaf_that_a_stage_reads_bears_identity_and_no_other(name: str) -> None:
    recipe = PRESETS[name]
    before = {stage.name: payload_without_code(stage, recipe) for stage in DAG}
    leaves = [path for path, _ in recipe.leaves()]
    assert len(leaves) > 50
    assert all(path in leaves for path in dotted(OTHER_KINDS.get(name, {})))
    for path in leaves:
        part = path.split(".", maxsplit=1)[0]
        altered = change(recipe, path.split("."))
        for stage in DAG:
            reads = part == "seed" or part in stage.reads_with(recipe)
            arguments = payload_arguments(stage, altered)
            same = fingerprint_of(before[stage.name] | {"recipe": arguments}) == fingerprint_of(
                before[stage.name]
            )
            assert same is not reads, f"{path} and stage {stage.name}"


def payload_arguments(stage: Stage, recipe: Recipe) -> dict[str, Any]:
    return {
        name: value.model_dump(mode="json", warnings=False)
        if isinstance(value, BaseModel)
        else value
        for name, value in stage.arguments(recipe).items()
    }


def test_every_part_of_the_recipe_is_read_by_some_stage() -> None:
    parts = {part for stage in DAG for part in stage.reads} | {"seed"}
    assert parts == set(Recipe.model_fields)


def test_more_images_make_other_conversations_only_where_they_are_written_for_them() -> None:
    found = {
        name: fingerprints(recipe)["conversations"]
        != fingerprints(recipe.override({"images.limit": 80_000}))["conversations"]
        for name, recipe in PRESETS.items()
        if name in ("demo", "coco")
    }
    assert found == {"demo": True, "coco": False}


def test_settings_are_not_even_asked() -> None:
    """`test_settings_never_make_anything_again` shows the same on a store."""
    assert not set(Settings.model_fields) & set(Recipe.model_fields)
    assert Settings not in payload_of.__annotations__.values()


@given(st.permutations(["pretrain.epochs", "seed", "images.limit", "finetune.batch"]))
@settings(max_examples=20, deadline=None)
def test_the_order_of_overrides_never_changes_a_fingerprint(order: list[str]) -> None:
    values = {"pretrain.epochs": 2, "seed": 7, "images.limit": 50, "finetune.batch": 64}
    recipe = PRESETS["demo"].override({path: values[path] for path in order})
    assert fingerprints(recipe) == fingerprints(PRESETS["demo"].override(values))


@given(st.sampled_from(LEAVES))
@settings(max_examples=30, deadline=None)
def test_naming_a_field_with_its_own_value_changes_nothing(leaf: tuple[str, str]) -> None:
    name, path = leaf
    recipe = PRESETS[name]
    value = dict(recipe.leaves())[path]
    assert fingerprints(recipe.override({path: value})) == fingerprints(recipe)


@pytest.mark.parametrize(
    "address",
    [
        "s3://key:s3cret@bucket/coco",
        "https://host/a.json?X-Amz-Signature=s3cret",
        "https://host/a.json?x=1&access_token=s3cret",
        "https://host/a.json?sig=s3cret",
        "https://host/a.json?key=s3cret",
        "https://host/a.json?download=true&jwt=s3cret",
        "https://host/a.json#s3cret",
        "https://s3cret@host/a.json",
        "s3://key:s3/cret@bucket/a.json",
    ],
)
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(RecipeError, match=r"conversations\.source\.path holds credentials") as told:
        PRESETS["demo"].override(
            {
                "conversations.source.kind": "file",
                "conversations.source.path": address,
                "conversations.source.sha256": None,
            }
        )
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize(
    "address",
    [
        "https://host/a.json?download=true",
        "https://host/a.json?versionId=3sL4kqtJlcpXroDTDmJ",
        "sftp://me@host/x",
        "abfs://container@account.dfs.core.windows.net/a.json",
    ],
)
def test_an_ordinary_address_is_no_secret(address: str) -> None:
    PRESETS["demo"].override(
        {
            "conversations.source.kind": "file",
            "conversations.source.path": address,
            "conversations.source.sha256": "0" * 64,
        }
    )


def test_a_text_may_speak_of_addresses() -> None:
    predicate = "text LIKE '%https://host/page?id=7%'"
    recipe = PRESETS["demo"].override({"examples.filters.links": predicate})
    assert recipe.examples.filters == {"links": predicate}
    with pytest.raises(RecipeError, match="holds credentials"):
        recipe.override({"examples.refusals": ["see https://host/page?api_key=s3cret for more"]})
