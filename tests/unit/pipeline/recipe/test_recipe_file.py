"""Recipes kept as YAML files mean what the same changes on the command line mean."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.cli import main
from pipeline.errors import PipelineError, RecipeError
from pipeline.recipe.presets import PRESETS, preset
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.recipe_file import changes_from, differences, read_recipe_file, recipe_text

FOLDER = {
    "images.source.kind": "folder",
    "images.source.root": "photos",
    "conversations.source.kind": "none",
    "finetune.caption_share": 1.0,
    "examples.filters.shouting": "text = upper(text)",
}


def read(path: Path, text: str) -> Recipe:
    path.write_text(text)
    name, changes = read_recipe_file(path)
    return preset(name or "demo").override(changes)


@pytest.mark.parametrize("name", PRESETS)
def test_a_whole_recipe_comes_back_equal_from_any_preset(name: str, tmp_path: Path) -> None:
    text = recipe_text(name, preset(name))
    assert read(tmp_path / "mine.yaml", text) == preset(name)
    bare = text.replace(f"preset: {name}\n", "")
    assert read(tmp_path / "mine.yaml", bare) == preset(name)


@pytest.mark.parametrize("changes", [{}, FOLDER, {"finetune.epochs": 2.5, "seed": 3}])
def test_a_changed_recipe_comes_back_equal(changes: dict[str, object], tmp_path: Path) -> None:
    recipe = preset("demo").override(changes)
    assert read(tmp_path / "mine.yaml", recipe_text("demo", recipe)) == recipe
    assert preset("demo").override(changes_from(preset("demo"), recipe)) == recipe


def test_only_what_differs_is_named_nested_or_dotted(tmp_path: Path) -> None:
    text = "preset: coco\nfinetune:\n  epochs: 2\n  lora_rank: 8\npretrain.learning_rate: 7e-4\n"
    expected = {"finetune.epochs": 2, "finetune.lora_rank": 8, "pretrain.learning_rate": 7e-4}
    assert read(tmp_path / "mine.yaml", text) == preset("coco").override(expected)


def test_a_misspelt_field_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"finetune\.epochs"):
        read(tmp_path / "mine.yaml", "finetune:\n  epoch: 2\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("finetune: [1, 2", "is not YAML: .* line 1"),
        ("- 1\n- 2\n", "holds no fields"),
        ("", "holds no fields"),
        ("publish:\n  name: 2026-11-29\n", r"publish\.name is datetime.*in quotes"),
        ("preset: [demo]\n", "preset is not a name"),
        ("publish:\n  name: !!python/object:os.system x\n", "is not YAML"),
        (f"publish:\n  name: {'x' * 2**20}\n", "at most"),
    ],
)
def test_what_is_not_a_recipe_is_refused_with_its_file(
    text: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=rf"(?s)mine\.yaml.*{words}"):
        read(tmp_path / "mine.yaml", text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nope\.yaml: No such file"):
        read_recipe_file(tmp_path / "nope.yaml")


@given(st.dictionaries(st.sampled_from(["seed", "finetune.epochs"]), st.integers(1, 50)))
def test_differences_are_exactly_the_changes(changes: dict[str, int]) -> None:
    before = preset("demo")
    now = before.override(changes)
    assert differences(before, before) == {}
    assert {path: new for path, (_, new) in differences(before, now).items()} == {
        path: value for path, value in changes.items() if dict(before.leaves())[path] != value
    }


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(list(arguments))
    return capsys.readouterr().out


def test_the_command_writes_and_reads_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    file = tmp_path / "mine.yaml"
    changed = ("--set", "finetune.epochs=9", "--preset", "coco")
    file.write_text(printed(capsys, "recipe", "--format", "yaml", *changed))
    shown = printed(capsys, "recipe", "--recipe", str(file), "--format", "json", "--set", "seed=4")
    assert json.loads(shown) == {"seed": 4, "finetune.epochs": 9.0}
    rows = printed(capsys, "recipe", "--diff", "coco", str(file)).splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["finetune.epochs"]


def test_two_presets_at_once_are_refused(tmp_path: Path) -> None:
    from flows.commands.options import preset_and_changes

    (tmp_path / "mine.yaml").write_text("preset: coco\n")
    with pytest.raises(PipelineError, match="starts from the preset coco"):
        preset_and_changes("demo", tmp_path / "mine.yaml", None)
