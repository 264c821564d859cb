"""Bundles of random weights that transformers' LLaVA class or llama.cpp can hold."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model.bundle import BUNDLE, PREFIX
from model.encoder import PatchEncoder
from model.projectors import Mlp2xGeluConfig, ProjectorConfig
from model.tiny_phi import train_tokenizer
from model.vision_prefix import VisionPrefix
from pipeline.recipe.presets import preset
from storage.store.artifacts import ArtifactStore
from storage.store.published import add_entry, read_history
from tests.support.tiny_bundle import TEXTS, _below, _commit, write_card, write_clip, write_prefix

Make = Callable[..., PreTrainedModel]
FAMILIES: dict[str, tuple[Make, type]] = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "phi": (PhiForCausalLM, PhiConfig),
    "phi3": (Phi3ForCausalLM, Phi3Config),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}


def write_language_model(
    folder: Path,
    family: str,
    *,
    tied: bool,
    unused: int = 0,
    dtype: torch.dtype = torch.float32,
    rotation: dict[str, Any] | None = None,
) -> int:
    """Write a small model with its tokenizer; return the id that ends a text.

    Args:
        folder: Where to write.
        family: Its `model_type`.
        tied: Whether the output layer is the embedding.
        unused: Rows of the embedding without a token.
        dtype: Type of its weights.
        rotation: How positions are rotated, as transformers' `rope_parameters`.
    """
    tokenizer = train_tokenizer(TEXTS * 3, 300, folder)
    eos = tokenizer.token_to_id("<|endoftext|>")
    torch.manual_seed(1)
    model, config = FAMILIES[family]
    made = model(
        config(
            vocab_size=tokenizer.get_vocab_size() + unused,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=256,
            initializer_range=0.3,
            bos_token_id=eos,
            eos_token_id=eos,
            pad_token_id=eos,
            tie_word_embeddings=tied,
            **({} if rotation is None else {"rope_parameters": rotation}),
        )
    )
    made.to(dtype).save_pretrained(folder)
    return eos


def write_llava_bundle(
    folder: Path,
    family: str = "llama",
    *,
    tied: bool = True,
    unused: int = 0,
    projector: ProjectorConfig | None = None,
    layer: int = -1,
    dtype: torch.dtype = torch.float32,
    rotation: dict[str, Any] | None = None,
    **template: Any,
) -> Path:
    """Write a bundle and return its folder.

    Args:
        folder: Where to write.
        family: See `write_language_model`.
        tied: See `write_language_model`.
        unused: See `write_language_model`.
        projector: `mlp2x_gelu` if None.
        layer: The encoder's layer.
        dtype: See `write_language_model`.
        rotation: See `write_language_model`.
        template: Fields of the prompt template.
    """
    write_clip(folder / "clip")
    eos = write_language_model(
        folder / "lm", family, tied=tied, unused=unused, dtype=dtype, rotation=rotation
    )
    write_prefix(folder, folder / "lm", projector or Mlp2xGeluConfig())
    _centre(folder)
    write_card(folder, eos)
    card = json.loads((folder / BUNDLE).read_text())
    card |= {"layer": layer, "template": card["template"] | template}
    (folder / BUNDLE).write_text(json.dumps(card))
    return folder


def _centre(folder: Path) -> None:
    """Centre patches on those of other images, as training does."""
    encoder = PatchEncoder(folder / "clip", -1)
    shown = [Image.open(io.BytesIO(data)) for data in images(20, seed=9)]
    prefix = load_file(folder / PREFIX)
    centred = VisionPrefix(nn.Identity(), 32, 32, 1.0)
    centred.centre_on(encoder.encode_images(shown).patches)
    prefix |= {name: tensor.clone() for name, tensor in centred.named_buffers()}
    save_file(prefix, folder / PREFIX)


def images(count: int, seed: int = 0) -> list[bytes]:
    """Return PNG files of coarse random colours, of many sizes."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        size = (int(random.integers(60, 200)), int(random.integers(60, 200)))
        blocks = random.integers(0, 256, (5, 6, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
        made.append(stream.getvalue())
    return made


def publish_bundle(store: ArtifactStore, bundle: Path, work: Path, **changes: Any) -> None:
    """Commit a bundle as the published assistant of the preset `small`.

    Args:
        store: Where.
        bundle: Its folder.
        work: A folder for the commits.
        changes: Fields of the recipe's part `backbones`.
    """
    work.mkdir(parents=True, exist_ok=True)
    recipe = preset("small").model_dump(mode="json")
    recipe["backbones"] |= changes
    parts = ("images", "conversations", "backbones")
    made = _commit(store, work, "backbones", _below(bundle, "lm/", "clip/"), recipe, parts, {})
    files = _below(bundle, "")
    digest = _commit(store, work, "publish", files, recipe, ("publish",), {"backbones": made})
    add_entry(
        store,
        read_history(store),
        action="published",
        run="tiny",
        fingerprint=store.manifests("publish")[0].fingerprint,
        digest=digest,
        reason="",
        against="",
    )
