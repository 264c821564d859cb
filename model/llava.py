"""A bundle's model as transformers' own `LlavaForConditionalGeneration`, computing the same.

Weights are renamed, not retrained: open_clip's tower becomes a `CLIPVisionModel`; the centring of
patches is folded into the projector's first layer; the separator becomes the embedding of one more
token. A single linear layer is LLaVA's two with the identity as activation and as second layer.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from model.bundle import PREFIX, PREFIX_CONFIG
from model.encoder import CONFIG, WEIGHTS
from model.language import load_language_model, saved_dtype
from model.language_parts import body_of, head_of

# open_clip's names inside a layer, and those of transformers' CLIP.
_LAYER = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)


class NewTokens(NamedTuple):
    """Ids of the two tokens that the language model did not have.

    Attributes:
        image: Stands for one patch.
        separator: The learned embedding after an image's patches.
        words: How many tokens the tokenizer had before.
    """

    image: int
    separator: int
    words: int


def build_llava(folder: Path, card: dict[str, Any], tokens: NewTokens) -> PreTrainedModel:
    """Return a bundle's model as a LLaVA to be saved, on the CPU.

    A LLaVA computes in one type, and its config says float32: that widens a language model in
    bfloat16 and rounds nothing. The saved weights keep their types.
    """
    language_model = load_language_model(folder / "lm", saved_dtype(folder / "lm"))
    language_model.config.dtype = torch.float32
    prefix = load_file(folder / PREFIX)
    kind = json.loads((folder / PREFIX_CONFIG).read_text())["projector"]["kind"]
    with torch.no_grad():
        _add_rows(language_model, tokens, prefix["separator"])
    config = LlavaConfig(
        vision_config=vision_config(folder / "clip"),
        text_config=language_model.config,
        image_token_index=tokens.image,
        image_seq_length=card["patches"],
        projector_hidden_act="gelu" if kind == "mlp2x_gelu" else "linear",
        vision_feature_select_strategy="default",
        vision_feature_layer=card["layer"],
        tie_word_embeddings=language_model.config.tie_word_embeddings,
        dtype=torch.float32,
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    llava.model.language_model = body_of(language_model)
    llava.lm_head = head_of(language_model)
    _fill(llava.model.vision_tower, vision_weights(folder / "clip"))
    _fill(llava.model.multi_modal_projector, projector_weights(prefix))
    llava.generation_config = _generation(card, tokens, len(llava.lm_head.weight))
    return llava.eval()


def vision_config(clip: Path) -> CLIPVisionConfig:
    """Return the config of transformers' CLIP tower for an open_clip folder."""
    stated = json.loads((clip / CONFIG).read_text())["model_cfg"]
    vision = stated["vision_cfg"]
    width = vision["width"]
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * vision.get("mlp_ratio", 4.0)),
        num_hidden_layers=vision["layers"],
        num_attention_heads=width // vision.get("head_width", 64),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        hidden_act="quick_gelu" if stated.get("quick_gelu") else "gelu",
        layer_norm_eps=1e-5,
        projection_dim=stated["embed_dim"],
    )


def vision_weights(clip: Path) -> dict[str, Tensor]:
    """Return the weights of open_clip's tower under the names of transformers' CLIP tower."""
    stored = load_file(clip / WEIGHTS)
    visual = {n.removeprefix("visual."): t for n, t in stored.items() if n.startswith("visual.")}
    named = {
        "embeddings.class_embedding": visual["class_embedding"],
        "embeddings.patch_embedding.weight": visual["conv1.weight"],
        "embeddings.position_embedding.weight": visual["positional_embedding"],
    }
    for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        named |= {f"{theirs}.{part}": visual[f"{ours}.{part}"] for part in ("weight", "bias")}
    layers = {n.split(".")[2] for n in visual if n.startswith("transformer.resblocks.")}
    for layer in sorted(layers, key=int):
        block = f"transformer.resblocks.{layer}."
        parts = {n.removeprefix(block): t for n, t in visual.items() if n.startswith(block)}
        named |= {f"encoder.layers.{layer}.{name}": t for name, t in _layer(parts)}
    return named


def _layer(parts: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield name and weight of one layer."""
    for ours, theirs in _LAYER:
        for kind in ("weight", "bias"):
            yield f"{theirs}.{kind}", parts[f"{ours}.{kind}"]
    for kind in ("weight", "bias"):
        joined = parts[f"attn.in_proj_{kind}"].chunk(3)
        for name, tensor in zip("qkv", joined, strict=True):
            yield f"self_attn.{name}_proj.{kind}", tensor


def projector_weights(prefix: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return LLaVA's projector for patches that are not centred.

    W (x - mean) / scale + b is (W / scale) x + (b - W mean / scale); computed in float64.

    Args:
        prefix: The weights of a `VisionPrefix` whose projector is `linear` or `mlp2x_gelu`.
    """
    single = "projector.output.weight" in prefix
    first = "projector.output" if single else "projector.linear_1"
    weight, bias = (prefix[f"{first}.{kind}"].double() for kind in ("weight", "bias"))
    # Bundles from before patches were centred have neither.
    mean = prefix.get("patch_mean", torch.zeros(weight.shape[1])).double()
    weight = weight / prefix.get("patch_scale", torch.ones(())).double()
    folded = {"linear_1.weight": weight.float(), "linear_1.bias": (bias - weight @ mean).float()}
    if single:
        width = len(bias)
        return folded | {"linear_2.weight": torch.eye(width), "linear_2.bias": torch.zeros(width)}
    second = {f"linear_2.{kind}": f"projector.linear_2.{kind}" for kind in ("weight", "bias")}
    return folded | {name: prefix[ours] for name, ours in second.items()}


def _add_rows(language_model: PreTrainedModel, tokens: NewTokens, separator: Tensor) -> None:
    """Give the new tokens embeddings: the separator, and zeros that patches replace."""
    rows = len(language_model.get_input_embeddings().get_parameter("weight"))
    needed = max(tokens.image, tokens.separator) + 1
    if needed > rows:
        language_model.resize_token_embeddings(needed, mean_resizing=False)
    weight = language_model.get_input_embeddings().get_parameter("weight")
    weight[tokens.separator] = separator.to(weight.dtype)
    weight[tokens.image] = 0


def _fill(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put weights into a module without any; each has to be there, and no other."""
    tensors = {name: tensor.float().contiguous() for name, tensor in weights.items()}
    module.load_state_dict(tensors, strict=True, assign=True)


def _generation(card: dict[str, Any], tokens: NewTokens, rows: int) -> GenerationConfig:
    """Return how the bundle writes: what `ask` uses, and no token that it could not write."""
    forbidden = sorted({tokens.image, tokens.separator, *range(tokens.words, rows)})
    return GenerationConfig(
        do_sample=False,
        num_beams=card["beams"],
        max_new_tokens=card["max_new_tokens"],
        eos_token_id=card["template"]["eos_id"],
        pad_token_id=card["template"]["eos_id"],
        suppress_tokens=forbidden,
    )
