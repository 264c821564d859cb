"""The assistant without slow imports: the same embeddings and texts as the usual one, or none."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import PhiConfig, PhiForCausalLM

from model.assistant import Assistant
from model.bundle import BUNDLE
from model.decoding import decode_image
from model.encoder import CONFIG, PatchEncoder, save_clip
from model.generation import generate
from model.generation_configs import GreedyConfig
from model.language import forbid_ids, load_language_model
from model.light_assistant import LightAssistant, light_assistant
from model.light_clip import LightClip
from model.light_clip import fits as clip_fits
from model.light_phi import LightPhi
from model.light_phi import fits as phi_fits
from model.projectors import LinearConfig
from model.tiny_clip import MEAN_STD, _untrained, tiny_clip_config
from model.vlm import build_vlm
from tests.support.tiny_bundle import image, texture

QUESTIONS = ("What colour is it?", "How many objects are there?", "x")
# What a command must not import; each takes longer than the answer of a small model.
SLOW = ("transformers", "open_clip", "timm", "torchvision", "peft", "wandb", "torch._dynamo")


@pytest.fixture(scope="module")
def light(tiny_bundle: Path) -> LightAssistant:
    found = light_assistant(tiny_bundle)
    assert found is not None
    return found


def test_it_writes_what_the_usual_assistant_writes(
    assistant: Assistant, light: LightAssistant
) -> None:
    files = [image("red"), image("blue"), texture()]
    seen, lightly = [assistant.see(file) for file in files], [light.see(file) for file in files]
    assert all(map(torch.equal, seen, lightly))
    assert light.caption(lightly) == assistant.caption(seen)
    for question in QUESTIONS:
        assert light.prompt(question) == assistant.prompt(question)
        for one, other in zip(seen, lightly, strict=True):
            assert light.ask([other], question) == assistant.ask([one], question)
    assert (light.prefix, light.room) == (assistant.prefix, assistant.room)


def clip_of(folder: Path, **changes: Any) -> Path:
    """Write an encoder of random weights whose config differs from the demo's."""
    config = tiny_clip_config(
        image_size=56, patch_size=8, width=32, layers=3, text_width=32, text_layers=1, embed=16
    )
    config["text_cfg"]["vocab_size"] = 50
    config["quick_gelu"] = changes.pop("quick_gelu", False)
    config["vision_cfg"] |= changes
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": MEAN_STD}))
    torch.manual_seed(0)
    save_clip(_untrained(folder)[0], config, folder)
    return folder


@pytest.mark.parametrize(
    "changes", [{"pool_type": "tok", "quick_gelu": True}, {"mlp_ratio": 2.0, "head_width": 16}]
)
@pytest.mark.parametrize("layer", [-1, -2])
def test_embeddings_are_those_of_open_clip(
    changes: dict[str, Any], layer: int, tmp_path: Path
) -> None:
    folder = clip_of(tmp_path / "clip", **changes)
    assert clip_fits(folder)
    usual, light = PatchEncoder(folder, layer), LightClip(folder, layer)
    for file in (image(), texture()):
        shown = decode_image(file, 10**6)
        expected, found = usual.encode_images([shown]), light.encode(shown)
        assert torch.equal(found.patches, expected.patches[0].half().float())
        assert torch.equal(found.pooled, expected.pooled[0])


@pytest.fixture(scope="module")
def encoders(tiny_bundle: Path) -> tuple[PatchEncoder, LightClip]:
    return PatchEncoder(tiny_bundle / "clip", -1), LightClip(tiny_bundle / "clip", -1)


@given(st.integers(1, 200), st.integers(1, 200))
def test_an_image_of_any_size_is_cropped_as_open_clip_does(
    encoders: tuple[PatchEncoder, LightClip], width: int, height: int
) -> None:
    usual, light = encoders
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    shown = Image.fromarray(pixels)
    assert np.array_equal(light.shrink(shown), usual.shrink(shown))


def phi_of(folder: Path, **changes: Any) -> Path:
    """Write a Phi of random weights with more rows of the embedding than words."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64}
    config = PhiConfig(
        **{**sizes, "num_hidden_layers": 3, "num_attention_heads": 2, "initializer_range": 0.3}
        | changes,
        max_position_embeddings=64,
    )
    phi = PhiForCausalLM(config)
    with torch.no_grad():
        for parameter in phi.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # norms and biases, too
    phi.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new"])
@pytest.mark.parametrize("rotated", [0.4, 1.0])
def test_texts_are_those_of_transformers(activation: str, rotated: float, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": rotated}
    folder = phi_of(tmp_path / "lm", hidden_act=activation, rope_parameters=rope)
    assert phi_fits(folder)
    usual, light = build_vlm(LinearConfig(), 8, 4, load_language_model(folder)), LightPhi(folder)
    forbid_ids(usual.language_model, 50)
    patches, prompt = torch.randn(6, 4, 8), [3, 1, 4, 1, 5]
    expected = generate(
        usual.eval(),
        patches,
        [prompt] * 6,
        eos_id=7,
        max_new_tokens=40,
        decoding=GreedyConfig(),
    )
    with torch.no_grad():
        prefixes = usual.embed_images(patches).tokens
    found = light.write(prefixes, prompt, words=50, eos_id=7, max_new_tokens=40)
    assert found == [text.ids for text in expected]
    assert len(set(map(tuple, found))) > 1
    assert max(map(max, found)) < 50


@pytest.mark.parametrize(
    "changes", [{"num_key_value_heads": 1}, {"qk_layernorm": True}, {"hidden_act": "silu"}]
)
def test_a_phi_with_other_parts_is_left_to_transformers(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    assert not phi_fits(phi_of(tmp_path / "lm", **changes))


def card_with(**fields: Any) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        path = bundle / BUNDLE
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def penalise(bundle: Path) -> None:
    path = bundle / "lm" / "generation_config.json"
    path.write_text(json.dumps({"repetition_penalty": 1.5}))


def rename_weights(bundle: Path) -> None:
    shutil.copyfile(bundle / "clip/open_clip_model.safetensors", bundle / "lm/model.safetensors")


def cut_weights(bundle: Path) -> None:
    path = bundle / "clip" / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "change",
    [
        card_with(beams=3),
        card_with(max_images=2),
        card_with(text_only=True),
        card_with(adapter={"dtype": "float32"}),
        card_with(second_layer=-2),
        card_with(format=99),
        penalise,
        rename_weights,
        cut_weights,
    ],
)
def test_any_other_bundle_is_left_to_the_usual_assistant(
    change: Callable[[Path], None], tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    assert light_assistant(tmp_path / "bundle") is not None
    change(tmp_path / "bundle")
    assert light_assistant(tmp_path / "bundle") is None


def test_asking_imports_none_of_the_slow_libraries(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(image())
    code = (
        "import sys; from flows.cli import main; main(sys.argv[1:]); "
        f"print([name for name in {SLOW} if name in sys.modules])"
    )
    asked = ["ask", str(tmp_path / "red.png"), QUESTIONS[0], "--bundle", str(tiny_bundle)]
    done = subprocess.run(
        [sys.executable, "-c", code, *asked], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
