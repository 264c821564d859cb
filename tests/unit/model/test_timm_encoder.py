"""Encoders of timm: convolutional and transformer, tiny and with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform

from model.encoder import PatchEncoder, encoder_fingerprint
from model.errors import ModelError
from model.timm_encoder import CONFIG, WEIGHTS, timm_shape, write_timm

# Grid, width and layers of timm's own models for tests.
SHAPES = {"test_efficientnet": (25, 256, 5), "test_vit": (100, 64, 6)}


@pytest.fixture(params=sorted(SHAPES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def weights_of(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "weights.safetensors"
    save_file(timm.create_model(name).state_dict(), path)
    return path


def encoder_of(name: str, folder: Path, layer: int = -1, beside: str = "") -> PatchEncoder:
    write_timm(f"timm/{name}", weights_of(name, folder), folder / "clip", beside)
    return PatchEncoder(folder / "clip", layer)


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = ((200, 161), (160, 300), (90, 90))
    return [
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8), "RGB") for size in sizes
    ]


def test_the_shape_is_read_from_the_model_without_weights(name: str) -> None:
    patches, width, depth = SHAPES[name]
    shape = timm_shape(f"timm/{name}", -1)
    assert shape[:3] == (patches, width, depth)
    assert shape.parameters == sum(p.numel() for p in timm.create_model(name).parameters())


def test_patches_are_the_models_own_features_by_position(name: str, tmp_path: Path) -> None:
    encoder = encoder_of(name, tmp_path)
    model = timm.create_model(name).eval()
    model.load_state_dict(load_file(tmp_path / "clip" / WEIGHTS))
    prepare = create_transform(**timm.data.resolve_data_config({}, model=model))
    pixels = torch.stack([prepare(image) for image in images()])
    with torch.inference_mode():
        features = model.forward_features(pixels)
        pooled = model.forward_head(features, pre_logits=True)
    found = encoder.encode_images(images())
    expected = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features[:, 1:]
    assert torch.equal(found.patches, expected)
    assert torch.allclose(found.pooled, torch.nn.functional.normalize(pooled, dim=-1))
    assert found.patches.shape == (3, *SHAPES[name][:2])
    assert encoder.depth == SHAPES[name][2]


def test_an_image_is_encoded_the_same_from_its_shrunk_bytes(name: str, tmp_path: Path) -> None:
    encoder = encoder_of(name, tmp_path)
    shrunk = np.stack([encoder.shrink(image) for image in images()])
    alone = encoder.encode_shrunk(shrunk[:1], 4)
    among = encoder.encode_shrunk(shrunk, 4)
    assert torch.equal(alone.patches[0], among.patches[0])
    assert torch.allclose(among.patches, encoder.encode_images(images()).patches, atol=1e-4)


def test_earlier_layers_have_their_own_grid(tmp_path: Path) -> None:
    assert timm_shape("timm/test_efficientnet", -2)[:2] == (100, 48)
    found = encoder_of("test_efficientnet", tmp_path, -2).encode_images(images()[:1])
    assert found.patches.shape == (1, 100, 48)
    with pytest.raises(ModelError, match="has 5 layers, and layer -6 was asked"):
        timm_shape("timm/test_efficientnet", -6)


def test_preprocessing_of_the_weights_enters_identity(tmp_path: Path) -> None:
    before = encoder_of("test_vit", tmp_path)
    stated = {"architecture": "test_vit", "pretrained_cfg": {"mean": [0.498] * 3}}
    after = encoder_of("test_vit", tmp_path, beside=json.dumps(stated))
    assert after.fingerprint != before.fingerprint
    kept = json.loads((tmp_path / "clip" / CONFIG).read_text())["pretrained_cfg"]
    assert kept["mean"] == [0.498] * 3
    assert kept["std"] == [0.5] * 3  # of the architecture
    assert encoder_fingerprint(tmp_path / "clip", -2) != after.fingerprint
    assert float(after.prepare(Image.new("RGB", (160, 160))).mean()) == pytest.approx(-0.996)


def test_what_is_no_such_model_is_refused(tmp_path: Path) -> None:
    weights = weights_of("test_vit", tmp_path)
    with pytest.raises(ModelError, match="timm has no model 'resnet_of_mine'"):
        write_timm("timm/resnet_of_mine", weights, tmp_path / "a")
    with pytest.raises(ModelError, match="does not fit a EfficientNet"):
        write_timm("timm/test_efficientnet", weights, tmp_path / "a")
    other = json.dumps({"architecture": "test_efficientnet"})
    with pytest.raises(ModelError, match="is a 'test_efficientnet', not a 'test_vit'"):
        write_timm("timm/test_vit", weights, tmp_path / "a", other)
    with pytest.raises(ModelError, match="not a config of timm"):
        write_timm("timm/test_vit", weights, tmp_path / "a", "[]")


def test_bf16_gives_float32_close_to_fp32_and_another_identity(name: str, tmp_path: Path) -> None:
    single = encoder_of(name, tmp_path)
    half = PatchEncoder(tmp_path / "clip", -1, precision="bf16")
    ours, theirs = half.encode_images(images()), single.encode_images(images())
    assert ours.patches.dtype == ours.pooled.dtype == torch.float32
    assert not torch.equal(ours.patches, theirs.patches)
    alike = torch.nn.functional.cosine_similarity(ours.pooled, theirs.pooled)
    assert alike.min() > 0.99
    assert half.fingerprint != single.fingerprint == encoder_fingerprint(tmp_path / "clip", -1)
