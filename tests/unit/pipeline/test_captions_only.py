"""Captions alone, an encoder of timm, a GGUF language model: every stage in seconds."""

import io
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flows.commands.options import preset_and_changes
from model.assistant import Assistant
from model.caption_consensus import CaptionConsensus
from model.errors import ModelError
from pipeline.engine.dag import BY_NAME, DAG
from pipeline.engine.materialize import Outcome
from pipeline.engine.runs import record_run
from pipeline.engine.stage import Stage
from pipeline.errors import PipelineError, RecipeError
from pipeline.publishing.licences import origins
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from pipeline.training.start import probe_start
from storage.store.artifacts import ArtifactStore
from storage.tables import read_table
from tests.support.fake_hub import FakeHub
from tests.support.fake_stages import make
from tests.unit.model.test_gguf_model import tiny_llama, write_gguf

pytestmark = pytest.mark.timeout(900)

TRAINED = ("examples", "pretrain", "finetune", "evaluate")  # parts of a recipe made small here
STILL = {"pretrain.learning_rate": 1e-12, "pretrain.separator_learning_rate": 1e-12}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220)}


def write_photos(root: Path) -> None:
    """Write captioned images in COCO's layout, without boxes or conversations."""
    rng, number = np.random.default_rng(0), 0
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train2017", 24), ("val2017", 6)):
        (root / split).mkdir()
        images, captions = [], []
        for _ in range(count):
            name = list(COLOURS)[number % 3]
            noise = rng.integers(-20, 20, (80, 96, 3))
            pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
            file = f"{number}.png"
            Image.fromarray(pixels, "RGB").save(root / split / file)
            images.append({"id": number, "file_name": file, "width": 96, "height": 80})
            captions += [
                {"id": 10 * number + turn, "image_id": number, "caption": f"a {name} {what} thing"}
                for turn, what in enumerate(("flat", "plain"))
            ]
            number += 1
        (root / "annotations" / f"captions_{split}.json").write_text(
            json.dumps({"images": images, "annotations": captions})
        )


def run(recipe: Recipe, folder: Path, stages: Sequence[Stage] = DAG) -> dict[str, Outcome]:
    """Materialize stages as the flow does."""
    settings = Settings(store=str(folder / "store"), workdir=folder / "work", device="cpu")
    store = ArtifactStore(settings.store, settings.work / "cache")
    return make(store, settings, recipe, stages=stages)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The preset `photos` made tiny."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "photos")
    write_gguf(folder / "tiny.gguf", tiny_llama())
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), folder / "tiny.safetensors")
    return preset("photos").override(
        {
            "images.source.root": str(folder / "photos"),
            "images.validation_share": 0.25,
            "backbones.clip_name": "timm/test_efficientnet",
            "backbones.clip_pretrained": str(folder / "tiny.safetensors"),
            "backbones.lm_repository": str(folder / "tiny.gguf"),
            "features.patches": 25,
            "examples.max_tokens": 160,  # its tokenizer knows hardly any word of the prompt
            "pretrain.projector.tokens": 4,
            "pretrain.precision": "fp32",
            "finetune.precision": "fp32",
            "finetune.least_image_gain": 0,
            "pretrain.batch": 4,
            "pretrain.micro_batch": 4,
            "finetune.batch": 4,
            "finetune.micro_batch": 4,
            "evaluate.max_new_tokens": 4,
            "evaluate.caption_samples": 0,
            "evaluate.resamples": 50,
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    assert {outcome.status for outcome in run(recipe, folder).values()} == {"made"}
    return folder


@pytest.fixture
def again(store: Path, recipe: Recipe) -> dict[str, Outcome]:
    """The same once more, which finds everything."""
    found = run(recipe, store)
    assert {outcome.status for outcome in found.values()} == {"cached"}
    return found


def rows_of(folder: Path, outcome: Outcome, table: str) -> list[dict[str, Any]]:
    artifact = ArtifactStore(str(folder / "store"), folder / "cache").artifact(outcome.manifest)
    return read_table(artifact.path(f"{table}.parquet")).to_pylist()


def test_captions_alone_go_through_every_stage(store: Path, again: dict[str, Outcome]) -> None:
    examples = rows_of(store, again["examples"], "examples")
    counts = Counter((row["kind"], row["split"]) for row in examples)
    assert counts == {
        ("caption", "train"): 36,
        ("caption", "validation"): 12,
        ("caption", "test"): 12,
    }
    assert rows_of(store, again["conversations"], "conversations") == []
    assert {row["kind"] for row in rows_of(store, again["evaluate"], "predictions")} == {"caption"}
    metrics = rows_of(store, again["evaluate"], "metrics")
    names = {row["metric"] for row in metrics if row["stage"] == "finetune"}
    assert {"cider_d", "caption_nll", "nll", "image_choice"} <= names
    assert "answer_accuracy" not in names
    assert again["finetune"].manifest.summary["adapted"] == "14/14"


def test_what_pretraining_saw_is_kept(store: Path, again: dict[str, Outcome]) -> None:
    kept = ArtifactStore(str(store / "store"), store / "cache")
    manifest = again["pretrain"].manifest
    effect = json.loads(kept.artifact(manifest).path("image_effect.json").read_text())
    assert effect["images"] == 6
    assert manifest.summary["image_gain"] == pytest.approx(effect["other"] - effect["own"])


def test_the_bundle_captions_a_photo_with_the_encoder_of_timm(
    store: Path, again: dict[str, Outcome]
) -> None:
    kept = ArtifactStore(str(store / "store"), store / "cache")
    assistant = Assistant(kept.artifact(again["publish"].manifest).path("bundle.json").parent)
    photo = io.BytesIO()
    Image.new("RGB", (100, 70), COLOURS["red"]).save(photo, "PNG")
    assert isinstance(assistant.caption([photo.getvalue()])[0], str)
    assert not assistant.text_only


def test_captions_are_chosen_where_those_of_similar_images_agree(
    store: Path, recipe: Recipe, again: dict[str, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe.override({"evaluate.caption_samples": 3})
    with monkeypatch.context() as patched:
        # So little training teaches no word of any caption: all texts agree with none.
        patched.setattr(CaptionConsensus, "choose", lambda _, patches, texts: len(texts) - 1)
        made = run(asked, store)
    remade = {name for name, outcome in made.items() if outcome.status == "made"}
    assert remade == {"evaluate", "publish"}
    greedy, chosen = (
        {(row["stage"], row["condition"], row["image_id"]): row["prediction"] for row in each}
        for each in (rows_of(store, out["evaluate"], "predictions") for out in (again, made))
    )
    others = {key for key, text in greedy.items() if chosen[key] != text}
    assert {stage for stage, *_ in others} == {"finetune"}  # before it nothing is drawn
    metrics = rows_of(store, made["evaluate"], "metrics")
    values = {(row["stage"], row["metric"], row["condition"]): row["value"] for row in metrics}
    before = {
        row["condition"]: row["value"]
        for row in rows_of(store, again["evaluate"], "metrics")
        if (row["stage"], row["metric"]) == ("finetune", "cider_d")
    }
    for condition in ("real", "shuffled", "blind"):
        assert values["finetune", "greedy_cider_d", condition] == before[condition]
    assert ("pretrain", "greedy_cider_d", "real") not in values
    assert {"real", "nearest_neighbour", "neighbour_consensus"} <= {
        row["condition"] for row in metrics if row["metric"] == "cider_d"
    }
    kept = ArtifactStore(str(store / "store"), store / "cache")
    folder = kept.artifact(made["publish"].manifest).path("bundle.json").parent
    texts = json.loads((folder / "consensus.json").read_text())
    assert (len(texts), {len(each) for each in texts}) == (18, {2})
    card = (folder / "README.md").read_text()
    assert "3 are drawn beside the likeliest one" in card
    assert "| nearest neighbour | neighbour consensus |" in card
    assistant = Assistant(folder)
    photo = io.BytesIO()
    Image.new("RGB", (96, 80), COLOURS["red"]).save(photo, "PNG")
    said = assistant.caption([photo.getvalue(), assistant.see(photo.getvalue())])
    assert len(set(said)) == 1
    assert assistant.consensus is not None


def test_captions_are_drawn_beside_greedy_ones_only(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="caption_samples 2 needs beams 1"):
        recipe.override({"evaluate.caption_samples": 2, "evaluate.beams": 3})


def test_pretraining_that_sees_nothing_stops_before_finetuning(store: Path, recipe: Recipe) -> None:
    asked = recipe.override({"finetune.least_image_gain": 50})
    with pytest.raises(PipelineError, match="pretraining left the image without effect"):
        run(asked, store)


def test_texts_alone_cannot_be_kept_where_captions_only_are_learned(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="text_only=keep has no effect"):
        recipe.override({"conversations.text_only": "keep"})


def test_answers_cannot_be_asked_for_where_there_are_none(recipe: Recipe) -> None:
    for field, value in (("finetune.caption_share", 0.5), ("publish.metric", "answer_accuracy")):
        with pytest.raises(RecipeError, match="leaves captions only"):
            recipe.override({field: value})


def test_a_wrong_number_of_patches_is_told_before_anything_is_embedded(
    store: Path, recipe: Recipe
) -> None:
    wrong = recipe.override({"features.patches": 36})
    with pytest.raises(PipelineError, match="the encoder gives 25 patches"):
        run(wrong, store)


# -- conversations alone -------------------------------------------------------------------------


@pytest.fixture
def spoken(recipe: Recipe, tmp_path: Path) -> Recipe:
    """The recipe with the same images, without captions, and conversations about them."""
    root = Path(str(dict(recipe.leaves())["images.source.root"]))
    talks = []
    for number in range(24):
        colour = list(COLOURS)[number % 3]
        turns = ["<image>\nWhich colour?", colour, "Is it grey?", "No."]
        said = zip(("human", "gpt") * 2, turns, strict=True)
        conversation = [{"from": speaker, "value": text} for speaker, text in said]
        talks.append({"id": number, "image": f"{number}.png", "conversations": conversation})
        if number < 3:
            plain = [{**turn, "value": turn["value"][-12:]} for turn in conversation[2:]]
            talks.append({"id": f"text {number}", "conversations": plain})
    shown = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "It."}]
    talks.append({"id": "lost image", "conversations": shown})
    (tmp_path / "talks.json").write_text(json.dumps(talks))
    source = {"root": str(root / "train2017"), "captions": "none", "test_share": 0.25}
    return recipe.override(
        {
            "images.source": {"kind": "pairs", **source},
            "conversations.source": {
                "kind": "file",
                "path": str(tmp_path / "talks.json"),
                "sha256": None,
            },
            "conversations.text_only": "keep",
            "finetune.caption_share": 0,
            "publish.metric": "answer_accuracy",
            "evaluate.questions": 12,
            "evaluate.pointing_images": 2,
        }
    )


def test_conversations_alone_go_through_every_stage(spoken: Recipe, tmp_path: Path) -> None:
    made = run(spoken, tmp_path)
    examples = rows_of(tmp_path, made["examples"], "examples")
    assert {row["kind"] for row in examples} == {"conversation"}
    texts = [row for row in examples if row["image_id"] is None]
    assert {row["split"] for row in texts} == {"train"}
    assert len(texts) == 1  # the three are alike
    drops = rows_of(tmp_path, made["examples"], "drops")
    assert [row["reason"] for row in drops if row["file"] == ""] == [
        "duplicate",
        "duplicate",
        "image marker count",
    ]
    trained = {name: made[name].manifest.summary["examples"] for name in ("pretrain", "finetune")}
    assert trained["finetune"] == trained["pretrain"] + 1
    assert {row["split"] for row in examples} == {"train", "validation", "test"}
    metrics = rows_of(tmp_path, made["evaluate"], "metrics")
    for stage in ("pretrain", "finetune"):
        names = {row["metric"] for row in metrics if row["stage"] == stage}
        assert {"answer_accuracy", "answer_accuracy_gap", "nll", "nll_yes_no", "eos_rate"} <= names
        assert not names & {"cider_d", "caption_nll", "image_choice"}
    predictions = rows_of(tmp_path, made["evaluate"], "predictions")
    assert {row["kind"] for row in predictions} == {"answer"}
    assert {row["condition"] for row in predictions} == {"real", "shuffled", "blind"}
    assert "image_gain" in made["pretrain"].manifest.summary
    kept = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    card = kept.artifact(made["publish"].manifest).path("README.md").read_text()
    assert "`answer_accuracy`" in card
    assert "CIDEr-D" not in card
    assert "answers questions without an image, too" in card
    assistant = Assistant(kept.artifact(made["publish"].manifest).path("bundle.json").parent)
    assert assistant.text_only
    assert isinstance(assistant.ask(None, "What is new?"), str)


def test_a_recipe_without_captions_is_told_what_it_needs(spoken: Recipe) -> None:
    for field, value in (("finetune.caption_share", 0.5), ("publish.metric", "cider_d")):
        with pytest.raises(RecipeError, match="images without captions leave conversations only"):
            spoken.override({field: value})
    with pytest.raises(RecipeError, match="need conversations about them"):
        spoken.override({"conversations.source": {"kind": "none"}})


def test_conversations_alone_need_some_about_test_images(spoken: Recipe, tmp_path: Path) -> None:
    talks = Path(str(dict(spoken.leaves())["conversations.source.path"]))
    told = json.loads(talks.read_text())
    made = run(spoken, tmp_path, [BY_NAME["images"]])
    rows = rows_of(tmp_path, made["images"], "images")
    tested = {row["file_name"] for row in rows if row["split"] == "test"}
    assert tested
    talks.write_text(json.dumps([each for each in told if each.get("image") not in tested]))
    with pytest.raises(PipelineError, match="no conversation is about a test image"):
        run(spoken, tmp_path)


# -- on from a finished model, with a table of new images ----------------------------------------


@pytest.fixture
def bundle(store: Path, again: dict[str, Outcome]) -> Path:
    kept = ArtifactStore(str(store / "store"), store / "cache")
    return kept.artifact(again["publish"].manifest).path("bundle.json").parent


@pytest.fixture
def new_images(tmp_path: Path) -> Path:
    """A table of images beside it."""
    rng = np.random.default_rng(1)
    rows = ["file,text"]
    for number in range(24):
        name = list(COLOURS)[number % 3]
        pixels = np.clip(np.array(COLOURS[name]) + rng.integers(-30, 30, (70, 70, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8), "RGB").save(tmp_path / f"{number}.png")
        rows.append(f'{number}.png,"a {name}, rather plain thing"')
    (tmp_path / "new.csv").write_text("\n".join(rows))
    return tmp_path / "new.csv"


def test_training_goes_on_from_a_bundle_with_new_images(
    bundle: Path, new_images: Path, recipe: Recipe, tmp_path: Path
) -> None:
    _, fields = preset_and_changes("photos", None, None, str(new_images), str(bundle))
    kept = {name: value for name, value in recipe.leaves() if name.split(".")[0] in TRAINED}
    small = {k: v for k, v in kept.items() if k not in fields and "source" not in k}
    going_on = preset("photos").override(
        {
            **small,
            **fields,
            **STILL,
            "images.validation_share": 0.25,
            "images.source.test_share": 0.25,
        }
    )
    assert going_on.backbones.lm_repository == str(bundle / "lm")
    made = run(going_on, tmp_path / "store")
    assert {outcome.status for outcome in made.values()} == {"made"}
    learned = ArtifactStore(str(tmp_path / "store/store"), tmp_path / "cache")
    before = load_file(bundle / "vision_prefix.safetensors")
    after = load_file(learned.artifact(made["pretrain"].manifest).path("vision_prefix.safetensors"))
    assert before.keys() == after.keys()
    for name, value in before.items():  # a rate of nothing leaves it where the bundle was
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6)
    texts = {row["text"] for row in rows_of(tmp_path / "store", made["examples"], "examples")}
    assert texts == {f"a {name}, rather plain thing" for name in COLOURS}


def test_a_run_names_its_bundle(
    bundle: Path, again: dict[str, Outcome], recipe: Recipe, store: Path
) -> None:
    uri = str(store / "store")
    name = record_run(ArtifactStore(uri, store / "cache"), recipe, list(again.values()))
    _, fields = preset_and_changes("photos", None, None, None, str(bundle))
    for start in (name, name[:6], "latest"):
        assert preset_and_changes("photos", None, None, None, start, uri)[1] == fields
    with pytest.raises(PipelineError, match="0 runs match 'my-assistant'"):
        preset_and_changes("photos", None, None, None, "my-assistant", uri)
    with pytest.raises(PipelineError, match=r"No such folder: \./my-assistant"):
        preset_and_changes("photos", None, None, None, "./my-assistant", uri)


def test_training_goes_on_from_a_bundle_on_the_hub(
    bundle: Path, recipe: Recipe, fake_hub: FakeHub, tmp_path: Path
) -> None:
    files = {str(p.relative_to(bundle)): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    commit = fake_hub.publish("owner/mine", files)
    _, fields = preset_and_changes("photos", None, None, None, "hf://owner/mine")
    for field, place in (
        ("backbones.clip_pretrained", "/clip"),
        ("backbones.lm_repository", "/lm"),
        ("pretrain.start", ""),
    ):
        assert fields[field] == f"hf://owner/mine@{commit}{place}"
    begun = recipe.override({**fields, **STILL})
    upto = DAG[: DAG.index(BY_NAME["pretrain"]) + 1]
    made = run(begun, tmp_path, upto)
    summary = made["backbones"].manifest.summary
    assert (summary["clip_commit"], summary["lm_commit"]) == (commit, commit)
    kept = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    for stage, name in (
        ("backbones", "clip/model.safetensors"),
        ("backbones", "lm/model.safetensors"),
        ("pretrain", "vision_prefix.safetensors"),
    ):
        ours = kept.artifact(made[stage].manifest).path(name)
        theirs, found = load_file(bundle / name.removeprefix("backbones/")), load_file(ours)
        assert found.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
    shown = {each.part: each for each in origins(begun.model_dump(mode="json"))}
    assert shown["start"].what == f"owner/mine at {commit}"
    assert shown["language model"].repository == "owner/mine"
    with pytest.raises(PipelineError, match=r"owner/mine/clip is not a bundle, it has no bundle"):
        preset_and_changes("photos", None, None, None, "hf://owner/mine/clip")


def test_a_bundle_behind_a_url_gives_the_same_fields(bundle: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/mine"
    fsspec.filesystem("memory").put(f"{bundle}/", url, recursive=True)
    _, fields = preset_and_changes("photos", None, None, None, url)
    _, known = preset_and_changes("photos", None, None, None, str(bundle))
    assert {k: str(v).replace(url, str(bundle)) for k, v in fields.items()} == {
        k: str(v) for k, v in known.items()
    }


def test_a_changed_bundle_is_noticed_and_another_projector_refused(
    bundle: Path, recipe: Recipe, store: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    begun = recipe.override({"pretrain.start": str(copy)})
    before = probe_start(begun)
    with (copy / "vision_prefix.safetensors").open("ab") as stream:
        stream.write(b" ")
    assert probe_start(begun) != before != {}
    with pytest.raises(PipelineError, match=r"bundle's projector is .*'tokens': 4.*'tokens': 9"):
        run(recipe.override({"pretrain.start": str(bundle), "pretrain.projector.tokens": 9}), store)
    with pytest.raises(PipelineError, match=r"has no vision_prefix\.safetensors"):
        run(recipe.override({"pretrain.start": str(bundle / "lm")}), store)
    with pytest.raises(PipelineError, match="is not a bundle"):
        preset_and_changes(None, None, None, None, str(bundle / "lm"))


# -- several images in a record ------------------------------------------------------------------


@pytest.fixture
def several(recipe: Recipe, tmp_path: Path) -> Recipe:
    """The recipe with conversations about pairs of images of the same split, and about one."""
    root = Path(str(dict(recipe.leaves())["images.source.root"]))
    talks = []
    for number in range(30):
        other = number + 1 if number < 23 else 24 + (number - 23) % 6
        names = [list(COLOURS)[each % 3] for each in (number, other)]
        asked = ["<image> <image>\nIs the second green?", "What colour is <image>, unlike <image>?"]
        answer = ["yes" if names[1] == "green" else "no", names[0]]
        place = number % 2
        turns = [asked[place], answer[place], "Are you sure?", "Yes."]
        said = zip(("human", "gpt") * 2, turns, strict=True)
        conversation = [{"from": speaker, "value": text} for speaker, text in said]
        images = [f"{number}.png", f"{other}.png"]
        talks.append({"id": number, "image": images, "conversations": conversation})
        alone = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": names[0]}]
        talks.append({"id": f"one {number}", "image": images[0], "conversations": alone})
    (tmp_path / "talks.json").write_text(json.dumps(talks))
    return recipe.override(
        {
            "images.source.root": str(root),
            "conversations.source": {
                "kind": "file",
                "path": str(tmp_path / "talks.json"),
                "sha256": None,
            },
            "conversations.max_images": 2,
            "finetune.caption_share": 0.4,
            "evaluate.questions": 12,
            "evaluate.pointing_images": 2,
        }
    )


def test_several_images_go_through_every_stage(several: Recipe, tmp_path: Path) -> None:
    made = run(several, tmp_path)
    examples = rows_of(tmp_path, made["examples"], "examples")
    pairs = [row for row in examples if row["more_sha256"]]
    assert {row["split"] for row in pairs} == {"train", "validation", "test"}
    drops = Counter(row["reason"] for row in rows_of(tmp_path, made["examples"], "drops"))
    assert set(drops) <= {"images of several splits"}
    predictions = rows_of(tmp_path, made["evaluate"], "predictions")
    answers = [row for row in predictions if row["kind"] == "answer"]
    assert {row["condition"] for row in answers} == {"real", "shuffled", "blind"}
    assert any("<image>" in row["question"] for row in answers)
    metrics = rows_of(tmp_path, made["evaluate"], "metrics")
    names = {row["metric"] for row in metrics if row["stage"] == "finetune"}
    assert {"cider_d", "answer_accuracy", "nll", "text_nll"} <= names
    kept = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    assistant = Assistant(kept.artifact(made["publish"].manifest).path("bundle.json").parent)
    assert assistant.most_images == 2
    _answers_as_trained(assistant, pairs)


def _answers_as_trained(assistant: Assistant, pairs: list[dict[str, Any]]) -> None:
    """What the assistant reads is what training read, images in front and inside the text."""
    begun = [
        ("What colour is <image>, unlike <image>?", "What colour is , unlike <image>?"),
        ("<image> <image>\nIs the second green?", "Is the second green?"),
    ]
    for question, text in begun:
        prompt = assistant.prompt(question, images=2)
        told = [row["input_ids"] for row in pairs if text in row["text"]]
        assert told
        assert all(ids[: len(prompt)] == prompt for ids in told)
    assert assistant.prompt("Is the second green?", images=2) == prompt
    photos = []
    for colour in ("red", "green"):
        stream = io.BytesIO()
        Image.new("RGB", (100, 70), COLOURS[colour]).save(stream, "PNG")
        photos.append(stream.getvalue())
    question = "Is the second green?"
    answer = assistant.ask(photos, question)
    assert list(assistant.stream(photos, question))[-1:] == ([answer] if answer else [])
    history = [("<image> What is unlike <image>?", "red")]
    assert isinstance(assistant.ask(photos, "Are you sure?", history), str)
    with pytest.raises(ModelError, match="3 images, but this assistant has learned to see 2"):
        assistant.ask([*photos, photos[0]], question)
    with pytest.raises(ModelError, match="says <image> 3 times and there are 2 images"):
        assistant.ask(photos, "<image> <image> <image> Which?")


def test_a_recipe_with_many_images_must_fit_the_language_model(several: Recipe) -> None:
    with pytest.raises(RecipeError, match="of each of 2000 images"):
        preset("coco").override({"conversations.max_images": 2000})
