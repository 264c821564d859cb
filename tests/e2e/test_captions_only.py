"""Captions alone, an encoder of timm, a language model out of a GGUF file: the DAG in seconds."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from storage.artifacts import ArtifactStore
from tests.conftest import ForkedCli, assignments
from tests.unit.test_gguf_model import tiny_llama, write_gguf

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

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


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    """What makes the preset `photos` tiny."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "photos")
    write_gguf(folder / "tiny.gguf", tiny_llama())
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), folder / "tiny.safetensors")
    return {
        "images.source.root": folder / "photos",
        "images.validation_share": 0.25,
        "backbones.clip_name": "timm/test_efficientnet",
        "backbones.clip_pretrained": folder / "tiny.safetensors",
        "backbones.lm_repository": folder / "tiny.gguf",
        "features.patches": 25,
        "pretrain.projector.tokens": 4,
        "pretrain.precision": "fp32",
        "finetune.precision": "fp32",
        "finetune.least_image_gain": 0,
        "pretrain.batch": 4,
        "pretrain.micro_batch": 4,
        "finetune.batch": 4,
        "finetune.micro_batch": 4,
        "evaluate.max_new_tokens": 4,
        "evaluate.resamples": 50,
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, changes: Mapping[str, object]) -> Path:
    folder = tmp_path_factory.mktemp("captions") / "store"
    cli = ForkedCli(folder)
    printed = cli.ok("run", "--preset", "photos", *assignments(changes))
    assert "adapted=14/14" in printed
    return folder


def rows_of(store: Path, query: str) -> list[dict[str, object]]:
    return json.loads(ForkedCli(store).ok("sql", query, "--format", "json"))


def test_captions_alone_go_through_every_stage(store: Path) -> None:
    found = rows_of(store, "SELECT kind, split, count(*) AS n FROM examples GROUP BY ALL")
    assert {(row["kind"], row["split"]): row["n"] for row in found} == {
        ("caption", "train"): 36,
        ("caption", "validation"): 12,
        ("caption", "test"): 12,
    }
    assert rows_of(store, "SELECT count(*) AS n FROM conversations") == [{"n": 0}]
    said = rows_of(store, "SELECT DISTINCT kind FROM predictions")
    assert said == [{"kind": "caption"}]
    metrics = rows_of(store, "SELECT DISTINCT metric FROM metrics WHERE stage = 'finetune'")
    names = {row["metric"] for row in metrics}
    assert {"cider_d", "caption_nll", "nll", "image_choice"} <= names
    assert "answer_accuracy" not in names


def test_what_pretraining_saw_is_kept(store: Path, tmp_path: Path) -> None:
    kept = ArtifactStore(str(store), tmp_path)
    (pretrain,) = kept.manifests("pretrain")
    assert "image_gain" in pretrain.summary
    effect = json.loads(kept.artifact(pretrain).path("image_effect.json").read_text())
    assert effect["images"] == 6


def test_a_second_run_makes_nothing_and_a_look_at_an_image_works(
    store: Path, changes: Mapping[str, object], tmp_path: Path
) -> None:
    again = ForkedCli(store).ok("run", "--preset", "photos", *assignments(changes))
    assert " made" not in again
    photo = tmp_path / "photo.png"
    Image.new("RGB", (100, 70), COLOURS["red"]).save(photo)
    assert ForkedCli(store).ok("caption", str(photo))
    assert ForkedCli(store).ok("similar", str(photo))


def test_pretraining_that_sees_nothing_stops_before_finetuning(
    store: Path, changes: Mapping[str, object]
) -> None:
    asked = {**changes, "finetune.least_image_gain": 50}
    stopped = ForkedCli(store)("run", "--preset", "photos", *assignments(asked))
    assert stopped.returncode == 1
    assert "pretraining left the image without effect" in stopped.stdout + stopped.stderr


def test_answers_cannot_be_asked_for_where_there_are_none(changes: Mapping[str, object]) -> None:
    from pipeline.errors import RecipeError
    from pipeline.presets import preset

    for field, value in (("finetune.caption_share", 0.5), ("publish.metric", "answer_accuracy")):
        with pytest.raises(RecipeError, match="leaves captions only"):
            preset("photos").override({field: value})
