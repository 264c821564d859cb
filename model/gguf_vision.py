"""A bundle's encoder and projector as the `mmproj` file of llama.cpp's LLaVA loader.

llama.cpp computes a LLaVA's vision side with a projector of two layers and GELU between them, in
its approximation by a hyperbolic tangent (as it does GELU in a tower without QuickGELU), read from
a table in float16. Everything else is as in `model.llava`, whose weights are written here.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.bundle import PREFIX
from model.encoder import CONFIG
from model.gguf_files import add_tensor, new_writer, write_file
from model.llava import projector_weights, vision_config, vision_weights
from model.llava_processor import image_statistics

# What `gguf` has no name for: how many layers of the tower are computed.
_LAYERS_COMPUTED = "clip.vision.feature_layer"


def write_vision_gguf(folder: Path, path: Path, card: dict[str, Any]) -> None:
    """Write encoder and projector of a bundle for which `obstacles_of_bundle` is empty.

    Layers after the one that patches are taken from are left out; all weights are float32.
    """
    prefix = load_file(folder / PREFIX)
    config: Any = vision_config(folder / "clip")
    computed = config.num_hidden_layers + card["layer"] + 1
    writer = new_writer(path, "clip", gguf.GGUFType.MMPROJ, card["name"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(len(prefix["separator"]))
    writer.add_vision_image_size(config.image_size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.hidden_size)
    writer.add_vision_feed_forward_length(config.intermediate_size)
    writer.add_vision_head_count(config.num_attention_heads)
    writer.add_vision_block_count(computed)
    writer.add_array(_LAYERS_COMPUTED, [computed])
    writer.add_vision_attention_layernorm_eps(config.layer_norm_eps)
    writer.add_vision_use_gelu(config.hidden_act == "gelu")
    mean, deviation = image_statistics(json.loads((folder / "clip" / CONFIG).read_text()))
    writer.add_vision_image_mean(mean)
    writer.add_vision_image_std(deviation)
    for name, tensor in (_tower(folder / "clip", computed) | _projector(prefix)).items():
        add_tensor(writer, name, tensor.float())
    write_file(writer)


def _tower(clip: Path, computed: int) -> dict[str, Tensor]:
    """Return the tower's weights by llama.cpp's names, without those that are not used."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, computed)
    tensors: dict[str, Tensor] = {}
    for name, tensor in vision_weights(clip).items():
        # None for a layer above. A norm at the end would be applied to the patches.
        ours = names.get_name(f"vision_tower.vision_model.{name}", (".weight", ".bias"))
        if ours is not None and not name.startswith("post_layernorm"):
            tensors[ours] = tensor
    return tensors


def _projector(prefix: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the projector as two layers.

    A single linear layer W has GELU between [W; -W] and [1, -1] beside each other: gelu(x) -
    gelu(-x) is x, for the approximation, too.
    """
    folded = projector_weights(prefix)
    weight, bias = folded["linear_1.weight"], folded["linear_1.bias"]
    if "projector.output.weight" not in prefix:
        second = {f"mm.2.{kind}": folded[f"linear_2.{kind}"] for kind in ("weight", "bias")}
        return {"mm.0.weight": weight, "mm.0.bias": bias} | second
    one = torch.eye(len(bias))
    return {
        "mm.0.weight": torch.cat([weight, -weight]),
        "mm.0.bias": torch.cat([bias, -bias]),
        "mm.2.weight": torch.cat([one, -one], dim=1),
        "mm.2.bias": torch.zeros(len(bias)),
    }
