"""Several sources in one recipe: each image and conversation keeps the name of its source."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flows.commands.recipe import print_recipe
from pipeline.data.conversations import conversations
from pipeline.data.probes import probe_conversations, probe_images
from pipeline.engine.dag import BY_NAME
from pipeline.engine.stage import StageContext
from pipeline.errors import PipelineError, RecipeError
from pipeline.evaluation.by_source import by_source
from pipeline.publishing.licences import origins
from pipeline.recipe.data_sources import MixtureImages, PairImages
from pipeline.recipe.parts import ConversationsPart
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.recipe_file import changes_from, read_recipe_file, recipe_text
from pipeline.settings import Settings
from storage.tables import read_table
from tests.unit.pipeline.data import test_captioned_sources as pairs
from tests.unit.pipeline.data.test_conversations import talk
from tests.unit.pipeline.data.test_filters import TALK, image, spoken
from tests.unit.pipeline.data.test_images import Recorder, jpeg

Row = dict[str, Any]


def write_bare(folder: Path) -> PairImages:
    """Images without captions, named as those of the table, with other content."""
    (folder / "images").mkdir(parents=True)
    for number in range(10):
        data = jpeg(number, (16, 10)) + bytes([number])
        (folder / "images" / f"{number:03d}.jpg").write_bytes(data)
    return PairImages(root=str(folder), captions="none", test_share=0.0)


@pytest.fixture
def mixture(tmp_path: Path) -> MixtureImages:
    sources = {"mine": pairs.as_csv(tmp_path / "table"), "bare": write_bare(tmp_path / "bare")}
    return MixtureImages(sources=sources, limits={})


def rows(out: Path, name: str = "images") -> list[Row]:
    return read_table(out / f"{name}.parquet").to_pylist()


def by_name(found: list[Row], source: str) -> dict[str, Row]:
    return {row["file_name"]: row for row in found if row["source"] == source}


def with_source(part: str, source: Any) -> Recipe:
    recipe = preset("photos")
    changed = getattr(recipe, part).model_copy(update={"source": source})
    return recipe.model_copy(update={part: changed})


# -- images -------------------------------------------------------------------------------------


def test_images_of_all_sources_are_one_table_with_their_sources_names(
    mixture: MixtureImages, tmp_path: Path
) -> None:
    summary, out = pairs.run(mixture, tmp_path / "work")
    found = rows(out)
    assert summary["images"] == len({row["image_id"] for row in found}) == 50
    assert {row["source"]: row["origin"].partition("/")[0] for row in found} == {
        "mine": "mine",
        "bare": "bare",
    }
    alone = pairs.told(pairs.run(mixture.sources["mine"], tmp_path / "alone")[1])
    captions = {row["image_id"]: row["caption"] for row in rows(out, "captions")}
    mine = by_name(found, "mine")
    assert {row["sha256"] for row in mine.values()} == set(alone)
    assert all(row["image_id"] in captions for row in mine.values())
    assert not any(row["image_id"] in captions for row in by_name(found, "bare").values())
    # Of equal names, each has the file of its own source.
    assert by_name(found, "bare")["images/003.jpg"]["width"] == 16
    assert mine["003.jpg"]["width"] == 12


def test_test_images_of_each_source_are_the_test_split(
    mixture: MixtureImages, tmp_path: Path
) -> None:
    both = mixture.model_copy(
        update={"sources": {"a": mixture.sources["mine"], "b": mixture.sources["bare"]}}
    )
    found = rows(pairs.run(both, tmp_path / "work")[1])
    tested = {row["origin"] for row in found if row["split"] == "test"}
    assert tested == {"a/test"}
    assert {row["split"] for row in found if row["source"] == "b"} <= {"train", "validation"}


def test_a_source_gives_no_more_than_its_limit_and_a_larger_one_keeps_the_same(
    mixture: MixtureImages, tmp_path: Path
) -> None:
    chosen = []
    for limit in (5, 12):
        limited = mixture.model_copy(update={"limits": {"mine": limit}})
        found = rows(pairs.run(limited, tmp_path / str(limit))[1])
        mine = [r for r in found if r["source"] == "mine" and r["split"] != "test"]
        chosen.append({row["sha256"] for row in mine})
        assert len(by_name(found, "bare")) == 10
    assert [len(each) for each in chosen] == [5, 12]
    assert chosen[0] < chosen[1]


def test_equal_images_of_two_sources_share_their_split(tmp_path: Path) -> None:
    first, second = pairs.as_csv(tmp_path / "one"), pairs.as_text_files(tmp_path / "two")
    second = second.model_copy(update={"test_share": 0.0})
    first = first.model_copy(update={"test_share": 0.0})
    both = MixtureImages(sources={"one": first, "two": second}, limits={})
    splits: dict[str, set[str]] = {}
    for row in rows(pairs.run(both, tmp_path / "work")[1]):
        splits.setdefault(row["sha256"], set()).add(row["split"])
    assert len(splits) == 40
    assert all(len(each) == 1 for each in splits.values())


def test_what_cannot_be_used_is_told_with_its_source(
    mixture: MixtureImages, tmp_path: Path
) -> None:
    with (tmp_path / "table/pairs.csv").open("a") as stream:
        stream.write("more.jpg,\n")
    (tmp_path / "bare/images/004.jpg").write_bytes(b"not an image")
    lost = rows(pairs.run(mixture, tmp_path / "work")[1], "drops")
    assert {(row["file"].partition("/")[0], row["reason"]) for row in lost} == {
        ("mine", "no caption"),
        ("images", "not an image"),
    }


def test_a_change_of_one_source_is_noticed(mixture: MixtureImages, tmp_path: Path) -> None:
    recipe = with_source("images", mixture)
    before = probe_images(recipe)
    assert set(before) == {"mine table", "mine images", "bare images"}
    (tmp_path / "bare/images/new.jpg").write_bytes(b"")
    after = probe_images(recipe)
    assert {label for label in before if before[label] != after[label]} == {"bare images"}


def test_the_code_of_each_source_is_part_of_the_stage(mixture: MixtureImages) -> None:
    modules = {module for module, _ in BY_NAME["images"].code_with(with_source("images", mixture))}
    start = "pipeline.data.datasets."
    assert modules == {f"{start}{name}" for name in ("mixture", "table", "pairs")}


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = PairImages(root=str(tmp_path / "data"), captions="none", test_share=0.0)
    with pytest.raises(PipelineError, match="holds no image"):
        pairs.run(source, tmp_path / "work")


# -- conversations ------------------------------------------------------------------------------


def write_talks(folder: Path, name: str, count: int) -> Row:
    path = folder / f"{name}.json"
    path.write_text(json.dumps([talk(number) for number in range(count)] + [{"image": 3}]))
    return {"kind": "file", "path": str(path), "sha256": None}


def test_files_of_conversations_are_one_table(tmp_path: Path) -> None:
    sources = {name: write_talks(tmp_path, name, count) for name, count in (("b", 3), ("a", 4))}
    part = ConversationsPart.model_validate(
        {
            "source": {"kind": "mixture", "sources": sources, "limits": {"a": 2}},
            "text_only": "drop",
            "max_images": 1,
        }
    )
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    context = StageContext({}, out, scratch, Settings(), Recorder())
    summary = conversations(context, part, seed=0)
    found = [
        (row["conversation_id"], row["source"], row["record_id"])
        for row in rows(out, "conversations")
    ]
    assert found == [(0, "a", "0"), (1, "a", "1"), (2, "b", "0"), (3, "b", "1"), (4, "b", "2")]
    assert summary["broken_records"] == 2
    assert {row["file"] for row in rows(out, "drops")} == {"a", "b"}


def test_each_file_of_conversations_has_a_state(tmp_path: Path) -> None:
    sources = {name: write_talks(tmp_path, name, 1) for name in ("a", "b")}
    part = ConversationsPart.model_validate(
        {
            "source": {"kind": "mixture", "sources": sources, "limits": {}},
            "text_only": "drop",
            "max_images": 1,
        }
    )
    recipe = with_source("conversations", part.source)
    before = probe_conversations(recipe)
    Path(sources["b"]["path"]).write_text("[]")
    after = probe_conversations(recipe)
    assert {label for label in before if before[label] != after[label]} == {"b"}


@pytest.mark.parametrize(
    ("written", "file", "found"),
    [
        ("coco/train2017/000.jpg", "llava", (1, None)),
        ("gqa/images/000.jpg", "llava", (2, None)),
        ("vg/VG_100K/000.jpg", "llava", (3, None)),
        ("000.jpg", "gqa", (2, None)),
        ("000.jpg", "llava", (1, None)),  # exactly its name
        ("elsewhere/000.jpg", "llava", (1, None)),
        ("elsewhere/images/000.jpg", "llava", (None, "ambiguous image")),
        ("train2017/000.jpg", "llava", (1, None)),
        ("coco/val2017/000.jpg", "llava", (None, "image missing")),
    ],
)
def test_a_path_that_begins_with_a_source_means_its_image(
    written: str, file: str, found: tuple[int | None, str | None]
) -> None:
    images = [
        {**image(1, name="000.jpg"), "source": "coco", "origin": "coco/train2017"},
        {**image(9, name="009.jpg"), "source": "coco", "origin": "coco/val2017"},
        {**image(2, name="images/000.jpg"), "source": "gqa", "origin": "gqa/train"},
        {**image(3, name="VG_100K/000.jpg"), "source": "vg", "origin": "vg/train"},
    ]
    named = spoken([(written, TALK)], images, source=file)
    assert [(row["image_id"], row["reason"]) for row in named] == [found]


# -- recipe, card, scores -----------------------------------------------------------------------

ONE = {"kind": "pairs", "root": "photos", "captions": "beside", "test_share": 0.1}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"sources": {"coco": ONE}, "limits": {"cocoa": 5}}, "did you mean 'coco'"),
        ({"sources": {}, "limits": {}}, "images.source"),
        ({"sources": {"a/b": ONE}, "limits": {}}, "a/b"),
        ({"sources": {"a": {**ONE, "rot": 1}}, "limits": {}}, "rot"),
        (
            {"sources": {"a": {"kind": "mixture", "sources": {}, "limits": {}}}, "limits": {}},
            "kind",
        ),
    ],
)
def test_a_mixture_that_is_none_is_refused(source: Row, words: str) -> None:
    change = {"images.source": {"kind": "mixture", **source}}
    with pytest.raises(RecipeError, match=words):
        preset("photos").override(change)


def test_sources_are_added_one_by_one() -> None:
    recipe = preset("photos").override(
        {
            "images.source.kind": "mixture",
            "images.source.limits": {},
            "images.source.sources": {"one": ONE},
        }
    )
    more = recipe.override({"images.source.sources.two": {**ONE, "root": "more"}})
    assert isinstance(more.images.source, MixtureImages)
    assert list(more.images.source.sources) == ["one", "two"]
    by_path = recipe.override(
        {
            "images.source.sources.two.root": "more",  # in any order
            "images.source.sources.two.kind": "pairs",
            "images.source.sources.two.captions": "beside",
            "images.source.sources.two.test_share": "0.1",
        }
    )
    assert by_path == more
    assert preset("photos").override(changes_from(preset("photos"), more)) == more
    other = more.override({"images.source.sources.two.root": "123"})
    assert isinstance(other.images.source, MixtureImages)
    assert other.images.source.sources["two"] == PairImages.model_validate({**ONE, "root": "123"})
    assert more.images.source.phrase == "images out of its maker's own folder"


def test_a_mixture_is_read_back_from_a_file(tmp_path: Path) -> None:
    source = {"kind": "mixture", "sources": {"one": ONE}, "limits": {"one": 7}}
    recipe = preset("photos").override({"images.source": source})
    (tmp_path / "mine.yaml").write_text(recipe_text("photos", recipe))
    name, changes = read_recipe_file(tmp_path / "mine.yaml")
    assert preset(str(name)).override(changes) == recipe


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("images.source.sources.one.rot", "x", r"images\.source\.sources\.one\.rot.*root"),
        ("images.source.sources.two.root", "x", r"images\.source\.sources\.two"),
        ("images.source.limits.one", "0", r"images\.source\.limits"),
        ("images.source.limits.three", "5", "no source 'three'"),
    ],
)
def test_a_wrong_field_of_an_entry_is_named(path: str, value: str, words: str) -> None:
    source = {"kind": "mixture", "sources": {"one": ONE}, "limits": {}}
    recipe = preset("photos").override({"images.source": source})
    with pytest.raises(RecipeError) as told:
        recipe.override({path: value})
    assert re.search(words, str(told.value), re.DOTALL)


def test_the_card_names_every_source() -> None:
    source = {"kind": "mixture", "limits": {}}
    recipe = preset("coco").model_dump(mode="json")
    coco, talk_of = recipe["images"]["source"], recipe["conversations"]["source"]
    recipe["images"]["source"] = {**source, "sources": {"coco": coco, "mine": ONE}}
    recipe["conversations"]["source"] = {**source, "sources": {"llava": talk_of}}
    told = {(each.part, each.what) for each in origins(recipe)}
    assert {
        ("images", "COCO 2017"),
        ("images", "a folder of captioned images"),
        ("conversations", "liuhaotian/LLaVA-Instruct-150K"),
    } < told


def prediction(source: str, number: int, said: str, kind: str = "caption") -> Row:
    fixed = {"condition": "real", "kind": kind, "source": source, "image_id": number}
    score = float(said == "yes") if kind == "answer" else None
    references = ["yes" if kind == "answer" else f"a dog runs over field number {number}"]
    return fixed | {"prediction": said, "references": references, "mentions": None, "score": score}


def test_scores_of_each_source_stand_beside_each_other() -> None:
    right = [prediction("good", n, f"a dog runs over field number {n}") for n in range(4)]
    wrong = [prediction("bad", 10 + n, "two cats sit on the sofa") for n in range(4)]
    asked = [prediction("good", 0, "yes", "answer"), prediction("bad", 11, "no", "answer")]
    found = by_source("finetune", [*right, *wrong, *asked], 20, 0)
    values = {(row["source"], row["metric"]): row["value"] for row in found}
    assert values["good", "bleu_4"] == pytest.approx(1.0)
    assert values["bad", "bleu_4"] < 0.01
    assert values["good", "cider_d"] > 5 > 0.1 > values["bad", "cider_d"]
    assert (values["good", "answer_accuracy"], values["bad", "answer_accuracy"]) == (1, 0)


def test_a_single_source_has_no_scores_of_its_own() -> None:
    assert by_source("finetune", [prediction("only", 1, "a dog")], 20, 0) == []


def test_the_fields_of_every_source_are_listed_as_they_are_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    source = {"kind": "mixture", "sources": {"one": ONE}, "limits": {}}
    print_recipe("photos", {"images.source": source}, "table")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("images.source.sources.one.root") for line in lines)
