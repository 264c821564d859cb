"""A bundle's language model as a GGUF file for llama.cpp, with the separator as one more token.

The package `gguf` has the names of tensors and keys. This file handles what llama.cpp computes
differently from transformers: rotated halves of queries and keys, and the scaling of rotations.
Adapters are merged already: a bundle's `lm/` is a plain model.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from model.errors import ModelError
from model.gguf_files import add_tensor, new_writer, write_file
from model.gguf_fit import ARCHITECTURES
from model.gguf_tokenizer import Vocabulary, write_vocabulary
from model.language import load_language_model, saved_dtype

# A score that no word has: what llama.cpp's loaders that ignore `suppress_tokens` see.
_NEVER = -1e4
# Activations, by family, that llama.cpp computes whatever a config says.
_ACTIVATIONS = {"phi": "gelu_new"}


def write_language_gguf(
    folder: Path, path: Path, vocabulary: Vocabulary, separator: Tensor, name: str
) -> None:
    """Write a bundle's language model.

    Matrices keep their type, float32 or bfloat16.

    Args:
        folder: Its `lm/`.
        path: The file to write.
        vocabulary: Its tokens, the separator among them.
        separator: [language]; the separator's embedding.
        name: The assistant's name.

    Raises:
        ModelError: llama.cpp computes a part of the model in another way.
    """
    dtype = saved_dtype(folder)
    language_model = load_language_model(folder, dtype)
    _check_config(language_model.config)
    with torch.no_grad():
        _add_separator(language_model, vocabulary, separator)
    architecture = ARCHITECTURES[language_model.config.model_type]
    writer = new_writer(path, architecture, gguf.GGUFType.MODEL, name)
    _write_dimensions(writer, language_model.config, is_bfloat16=dtype == torch.bfloat16)
    rows = len(language_model.get_input_embeddings().get_parameter("weight"))
    write_vocabulary(writer, folder, vocabulary, rows)
    for tensor_name, tensor in _tensors(language_model, architecture):
        add_tensor(writer, tensor_name, tensor)
    write_file(writer)


def _check_config(config: Any) -> None:
    """Refuse what llama.cpp would silently compute in another way.

    Raises:
        ModelError: There is such a thing.
    """
    family = config.model_type
    unlike = []
    if config.hidden_act != (expected := _ACTIVATIONS.get(family, "silu")):
        unlike.append(f"hidden_act is {config.hidden_act} and not {expected}")
    rotation = config.rope_parameters["rope_type"]
    known = ("default", "llama3") if ARCHITECTURES[family] == "llama" else ("default",)
    if rotation not in known:
        unlike.append(f"rope_type is {rotation}, and {' or '.join(known)} can be written")
    unlike += [f for f in ("qk_layernorm", "mlp_bias") if getattr(config, f, False)]
    if unlike:
        raise ModelError(
            f"llama.cpp computes this {family} in another way: its {'; its '.join(unlike)}"
        )


def _add_separator(
    language_model: PreTrainedModel, vocabulary: Vocabulary, separator: Tensor
) -> None:
    """Set the separator's embedding and, where the head allows it, a score that no word has."""
    rows = len(language_model.get_input_embeddings().get_parameter("weight"))
    if vocabulary.separator >= rows:
        language_model.resize_token_embeddings(vocabulary.separator + 1, mean_resizing=False)
    weight = language_model.get_input_embeddings().get_parameter("weight")
    weight[vocabulary.separator] = separator.to(weight.dtype)
    head: Any = language_model.get_output_embeddings()
    if head.weight is not weight:
        head.weight[vocabulary.separator] = 0
    if head.bias is not None:
        head.bias[vocabulary.separator :] = _NEVER


def _write_dimensions(writer: gguf.GGUFWriter, config: Any, *, is_bfloat16: bool) -> None:
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotation = config.rope_parameters
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    # llama.cpp has no window for these architectures; inside it attention is the same.
    writer.add_context_length(min(window, config.max_position_embeddings))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(int(head * rotation.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rotation["rope_theta"])
    if config.model_type == "phi":
        writer.add_layer_norm_eps(config.layer_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    kinds = gguf.LlamaFileType
    writer.add_file_type(kinds.MOSTLY_BF16 if is_bfloat16 else kinds.ALL_F32)


def _tensors(language_model: PreTrainedModel, architecture: str) -> list[tuple[str, Tensor]]:
    """Return the weights as llama.cpp names and lays them out."""
    config: Any = language_model.config
    number = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    written: list[tuple[str, Tensor]] = []
    for name, tensor in language_model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if ours is None:
            raise ModelError(f"llama.cpp's {architecture} has no tensor for {name}")
        laid_out = tensor
        if architecture == "llama" and ".self_attn." in name:
            if ".q_proj." in name:
                laid_out = interleaved(tensor, config.num_attention_heads)
            elif ".k_proj." in name:
                laid_out = interleaved(tensor, config.num_key_value_heads)
        written.append((ours, laid_out))
    if config.rope_parameters["rope_type"] == "llama3":
        written.append(("rope_freqs.weight", _rotation_factors(language_model)))
    return written


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Return the outputs of a head in the order in which llama.cpp's Llama rotates them.

    transformers rotates output i with output i + half, llama.cpp's `llama` neighbours, as Meta's
    own code does; its other architectures do as transformers.
    """
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _rotation_factors(language_model: PreTrainedModel) -> Tensor:
    """Return by what Llama 3 divides each frequency of rotation."""
    body: Any = language_model.base_model
    scaled: Tensor = body.rotary_emb.inv_freq.float()
    theta = language_model.config.rope_parameters["rope_theta"]
    plain = theta ** -(np.arange(len(scaled)) / len(scaled))
    return torch.from_numpy(plain).float() / scaled
