"""How well captions fit their images, compared with open_clip's own similarity."""

import io
import json
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image

from model.encoder import CONFIG
from model.errors import ModelError
from model.text_encoder import TextEncoder
from pipeline.data.schemas import CAPTIONS
from pipeline.engine.dag import BY_NAME
from pipeline.errors import RecipeError
from pipeline.features import clip_scores as module
from pipeline.features.clip_scores import CLIP_SCORES
from pipeline.recipe.presets import preset
from storage.tables import read_table, write_table
from tests.unit.pipeline.features.test_features import (
    PART,
    Folder,
    embed,
    image,
    images_in,
    made_backbones,
)

NUMBERS = range(9)
TEXTS = ("a red square", "two blue circles on grass", "word " * 200, "Ein Löwe, 獅子", "")
SCORED = PART.model_copy(update={"clip_scores": True})


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return made_backbones(tmp_path_factory.mktemp("backbones"), seed=0)


@pytest.fixture
def images(tmp_path: Path) -> Folder:
    (tmp_path / "images").mkdir()
    found = images_in(tmp_path / "images", NUMBERS)
    captions = [
        {"caption_id": 100 + at, "image_id": at % 11, "caption": TEXTS[at % len(TEXTS)]}
        for at in range(23)  # images 9 and 10 could not be read
    ]
    write_table(found.path("captions.parquet"), captions, CAPTIONS)
    return found


def plain(backbones: Folder, captions: list[dict]) -> list[float]:
    """The same by open_clip alone, one caption after the other."""
    place = f"local-dir:{backbones.directory('clip')}"
    clip, _, preprocess = open_clip.create_model_and_transforms(place)
    tokens, clip = open_clip.get_tokenizer(place), clip.eval()
    found = []
    for row in captions:
        pixels = preprocess(Image.open(io.BytesIO(image(row["image_id"]))).convert("RGB"))
        with torch.inference_mode():
            ours = clip.encode_image(pixels[None], normalize=True)
            text = clip.encode_text(tokens([row["caption"]]), normalize=True)
        found.append(float((ours * text).sum()))
    return found


@pytest.mark.parametrize("batch", [4, 256])
def test_scores_are_the_similarities_of_open_clip(
    tmp_path: Path, images: Folder, backbones: Folder, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    embed(tmp_path / "made", images, backbones, part=SCORED)
    table = read_table(tmp_path / "made/out/clip_scores.parquet")
    captions = read_table(images.path("captions.parquet")).to_pylist()
    readable = [row for row in captions if row["image_id"] in NUMBERS]
    assert table.schema.equals(CLIP_SCORES)
    assert table["caption_id"].to_pylist() == [row["caption_id"] for row in readable]
    np.testing.assert_allclose(table["clip_score"], plain(backbones, readable), atol=2e-4)


def test_without_the_field_nothing_is_scored(
    tmp_path: Path, images: Folder, backbones: Folder
) -> None:
    embed(tmp_path / "made", images, backbones)
    table = read_table(tmp_path / "made/out/clip_scores.parquet")
    assert table.equals(CLIP_SCORES.empty_table())


def test_encoders_without_a_text_tower_or_its_tokenizer_are_refused(
    tmp_path: Path, backbones: Folder
) -> None:
    with pytest.raises(ModelError, match="no text tower"):
        TextEncoder(tmp_path)
    config = json.loads((backbones.directory("clip") / CONFIG).read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "timm/ViT-B-16-SigLIP"
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match="timm/ViT-B-16-SigLIP, is not in the store"):
        TextEncoder(tmp_path)


def test_a_recipe_is_refused_whose_filter_has_no_scores_to_read() -> None:
    filters = {"examples.filters": {"unfit": "clip_score < 0.2"}}
    with pytest.raises(RecipeError, match=r"set features\.clip_scores=true"):
        preset("coco").override(filters)
    recipe = preset("coco").override({**filters, "features.clip_scores": True})
    assert "features" in BY_NAME["examples"].needs(recipe)
    with pytest.raises(RecipeError, match="has no text tower"):
        preset("photos").override({"features.clip_scores": True})


def test_scores_are_whole_columns(backbones: Folder) -> None:
    encoder = TextEncoder(backbones.directory("clip"))
    found = encoder.encode(TEXTS)
    assert found.shape == (len(TEXTS), 16)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)))
    assert pa.types.is_float32(CLIP_SCORES.field("clip_score").type)
