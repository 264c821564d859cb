"""Recipes: complete, frozen, changed by dotted paths, refused with the nearest valid name."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pipeline.errors import RecipeError
from pipeline.recipe.presets import PRESETS, preset
from pipeline.recipe.recipe import Recipe


def parts(model: BaseModel, prefix: str = "") -> list[tuple[str, object]]:
    found = []
    for name, field in type(model).model_fields.items():
        found.append((f"{prefix}{name}", field))
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found += parts(value, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_every_field_is_described_and_has_no_default(name: str) -> None:
    for path, field in parts(preset(name)):
        leaf = path.rsplit(".", 1)[-1]
        if leaf == "kind":
            continue
        assert field.is_required(), path
        if "." in path and not isinstance(field.annotation, type(BaseModel)):
            assert field.description or leaf in ("source", "scheduled"), path


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_survives_json(name: str) -> None:
    recipe = preset(name)
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe


def test_override_changes_one_field_and_no_sibling() -> None:
    recipe = preset("demo")
    changed = recipe.override({"finetune.epochs": 2})
    assert changed.finetune.epochs == 2
    before, after = dict(recipe.leaves()), dict(changed.leaves())
    assert {key for key in before if before[key] != after[key]} == {"finetune.epochs"}


def test_text_values_are_read_as_the_command_line_writes_them() -> None:
    recipe = preset("demo").override(
        {
            "finetune.method": "lora",
            "finetune.epochs": "2.5",
            "pretrain.gradient_checkpointing": "true",
            "examples.refusals": '["no idea"]',
        }
    )
    assert recipe.finetune.method == "lora"
    assert recipe.finetune.epochs == 2.5
    assert recipe.pretrain.gradient_checkpointing is True
    assert recipe.examples.refusals == ("no idea",)


@pytest.mark.parametrize("text", ["2024", "1e5", "true", "null", "0123", "-7", "a"])
def test_a_field_of_text_takes_any_text(text: str) -> None:
    recipe = preset("coco").override(
        {
            "publish.name": text,
            "backbones.lm_revision": text,
            "images.source.kind": "folder",
            "images.source.root": text,
            "conversations.source.kind": "file",
            "conversations.source.path": text,
            "conversations.source.sha256": "null",
            "examples.user_prefix": f'"{text}"',
        }
    )
    assert recipe.publish.name == recipe.backbones.lm_revision == text  # ty: ignore
    assert recipe.images.source.root == recipe.conversations.source.path == text  # ty: ignore
    assert recipe.conversations.source.sha256 is None  # ty: ignore
    assert recipe.examples.user_prefix == text


def test_a_filter_that_is_a_word_of_json_is_sql() -> None:
    recipe = preset("demo").override({"examples.filters.all": "true"})
    assert recipe.examples.filters == {"all": "true"}


@pytest.mark.parametrize(("path", "text"), [("seed", "one"), ("pretrain.batch", "null")])
def test_a_field_of_numbers_takes_no_text(path: str, text: str) -> None:
    with pytest.raises(RecipeError, match=f"{path}: .*integer"):
        preset("demo").override({path: text})


def test_a_path_below_named_entries_adds_or_replaces_one() -> None:
    whole = {"shouting": "text = upper(text)", "v1.0": "tokens > 9"}
    one = preset("demo").override({"examples.filters.shouting": "text = upper(text)"})
    two = one.override({"examples.filters.v1.0": "tokens > 9"})
    assert one.examples.filters == {"shouting": "text = upper(text)"}
    assert two == preset("demo").override({"examples.filters": json.dumps(whole)})
    both = {"examples.filters": whole, "examples.filters.shouting": "turns > 3"}
    assert preset("demo").override(both).examples.filters == {**whole, "shouting": "turns > 3"}
    assert whole["shouting"] == "text = upper(text)"
    assert dict(two.leaves())["examples.filters.shouting"] == "text = upper(text)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"examples.filters.shouting": "txt = 1"}, "'shouting'.*columns: source, kind"),
        ({"examples.filters.shouting": 3}, "examples.filters.shouting.*valid string"),
        ({"examples.filters.shouting": "3"}, "'shouting'.*INTEGER, not true or false"),
        ({"examples.filters.": "true or kind = 'a'"}, "not a valid name for a reason"),
        ({"examples.filter.shouting": "tokens > 9"}, "'examples.filter'.*'examples.filters'"),
        ({"examples.max_tokens.shouting": "1"}, "'examples.max_tokens.*'examples.max_tokens'"),
        ({"examples.filters": "5", "examples.filters.a": "tokens > 9"}, "valid dictionary"),
        ({"model_fields.seed": "1"}, "no field 'model_fields'"),
    ],
)
def test_an_entry_is_checked_and_a_misspelt_field_is_none(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(RecipeError, match=re.compile(words, re.DOTALL)):
        preset("demo").override(changes)


def test_changing_a_kind_takes_the_new_fields_only() -> None:
    recipe = preset("demo").override(
        {
            "images.source.kind": "folder",
            "images.source.root": "/data/coco",
            "conversations.source.kind": "file",
            "conversations.source.path": "talk.json",
            "conversations.source.sha256": "null",
        }
    )
    assert recipe.images.source.model_dump() == {"kind": "folder", "root": "/data/coco"}
    assert recipe.conversations.source.sha256 is None  # ty: ignore


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("images.source.kind=folder", "images.source.root"),
        ("pretrain.projector.kind=sparse_mixture", "pretrain.projector.active"),
        ("finetune.objective.kind=scheduled_sampling", "finetune.objective.decay"),
        ("backbones.kind=hub", "backbones.clip_name"),
    ],
)
def test_a_new_kind_names_the_fields_it_lacks(kind: str, lacking: str) -> None:
    path, value = kind.split("=")
    with pytest.raises(RecipeError, match=f"--set {re.escape(lacking)}=…"):
        preset("demo").override({path: value})


def test_a_misspelt_field_of_a_new_kind_names_one_of_its_own() -> None:
    changes = {
        "pretrain.projector.kind": "sparse_mixture",
        "pretrain.projector.activ": 2,
    }
    with pytest.raises(RecipeError) as caught:
        preset("demo").override(changes)
    assert "no field 'pretrain.projector.activ'" in str(caught.value)
    assert "did you mean 'pretrain.projector.active'" in str(caught.value)


def test_a_filter_that_is_named_like_a_kind_keeps_its_name() -> None:
    with pytest.raises(RecipeError, match=r"examples\.filters\.demo: "):
        preset("demo").override({"examples.filters.demo": 3})


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("pretrain.lerning_rate", "pretrain.learning_rate"),
        ("finetune.epoch", "finetune.epochs"),
        ("evaluat.images", "evaluate.images"),
        ("learning_rate", "learning_rate"),
    ],
)
def test_a_typo_names_the_nearest_valid_field(typo: str, meant: str) -> None:
    with pytest.raises(RecipeError) as caught:
        preset("demo").override({typo: 1})
    assert typo.split(".")[0] in str(caught.value)
    assert meant in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("finetune.precision", "fp16", "bf16 or fp32"),
        ("pretrain.projector.tokens", 50, "49 patches"),
        ("features.patches", 196, "49"),
        ("pretrain.batch", -1, "pretrain.batch"),
        ("pretrain.micro_batch", 7, "multiple"),
        ("finetune.method", "qlora", "finetune.method"),
        ("evaluate.presence_question", "Is there {object} or {x}?", "braces"),
        ("evaluate.presence_question", "Is there {object", "presence_question"),
        ("evaluate.presence_question", "Is there {{object}}?", "does not ask"),
        ("evaluate.presence_answers", ("yes", "yes"), "cannot be told apart"),
        ("evaluate.presence_answers", ("no", "not at all"), "cannot be told apart"),
        ("evaluate.presence_answers", ("yes", ""), "cannot be told apart"),
        ("finetune.epochs", float("inf"), "finetune.epochs.*finite"),
        ("finetune.epochs", "Infinity", "finetune.epochs.*finite"),
        ("pretrain.clip_norm", float("nan"), "pretrain.clip_norm"),
        ("backbones.lm_heads", 5, "lm_width 96 .* 5 lm_heads"),
        ("backbones.lm_heads", 16, "multiple of 4"),
        ("backbones.patch_size", 15, "image_size 112 is not a multiple of patch_size 15"),
        ("backbones.clip_width", 50, "clip_width 50 is not a multiple of 32"),
        ("backbones.clip_text_width", 16, "clip_text_width 16"),
        ("examples.max_tokens", 1000, "1024 positions.*examples.max_tokens=1000"),
        ("evaluate.max_new_tokens", 2000, "evaluate.max_new_tokens=2000 need 2210"),
    ],
)
def test_nonsense_is_refused_before_any_work(path: str, value: object, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        preset("demo").override({path: value})


def test_texts_that_phi_2_cannot_read_are_refused() -> None:
    with pytest.raises(RecipeError, match="2048 positions: 50 of the image"):
        preset("coco").override({"examples.max_tokens": 2000})
    # Another model's positions are not known before its config is fetched.
    other = {"backbones.lm_repository": "someone/phi", "examples.max_tokens": 2000}
    assert preset("coco").override(other).examples.max_tokens == 2000


def test_the_sizes_of_the_tiny_models_are_those_of_their_code() -> None:
    from model.tiny_clip import tiny_clip_config
    from model.tiny_phi import POSITIONS
    from pipeline.recipe.backbone_parts import CLIP_HEAD, TINY_POSITIONS

    config = tiny_clip_config(
        image_size=64, patch_size=8, width=64, layers=1, text_width=64, text_layers=1, embed=8
    )
    assert config["vision_cfg"]["head_width"] == CLIP_HEAD
    assert config["text_cfg"]["heads"] == 64 // CLIP_HEAD
    assert POSITIONS == TINY_POSITIONS


def test_openai_weights_need_quickgelu() -> None:
    with pytest.raises(RecipeError, match="quickgelu"):
        preset("coco").override({"backbones.clip_name": "ViT-B-32"})


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(RecipeError, match="demo, coco"):
        preset("dmeo")


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError):
        preset("demo").seed = 1  # ty: ignore


@given(st.integers(min_value=0, max_value=10**9), st.integers(min_value=1, max_value=10**6))
def test_the_order_of_overrides_does_not_matter(seed: int, images: int) -> None:
    one = preset("demo").override({"seed": seed, "evaluate.images": images})
    other = preset("demo").override({"evaluate.images": images}).override({"seed": seed})
    assert one == other


@given(st.sampled_from([path for path, _ in preset("demo").leaves()]))
def test_overriding_a_field_with_its_own_value_changes_nothing(path: str) -> None:
    recipe = preset("demo")
    assert recipe.override({path: dict(recipe.leaves())[path]}) == recipe
