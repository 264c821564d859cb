"""Dimensions read from configs are those of transformers' own models."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from model.errors import ModelError
from model.language_config import LAYOUTS, line_of_config, line_of_gguf
from model.language_parts import layers_of

SIZES = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
PLAIN = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "gpt_neox": PLAIN,
    "qwen3": {**SIZES, "head_dim": 32},
    "gemma": {**SIZES, "head_dim": 48},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", LAYOUTS)
def test_matrices_are_those_of_transformers_model(family: str, tied: bool) -> None:
    sizes = CHANGES.get(family, SIZES)
    config = AutoConfig.for_model(family, **sizes, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    line = line_of_config(config.to_dict(), "the model")
    inside = {
        name.rpartition(".")[2]: (part.in_features, part.out_features)
        for name, part in layers_of(model)[0].named_modules()
        if isinstance(part, torch.nn.Linear)
    }
    assert line.linears == inside
    assert not any(isinstance(part, Conv1D) for part in model.modules())
    whole = sum(parameter.numel() for parameter in model.parameters())
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    matrices = line.layer_matrices + (1 if tied else 2) * line.head
    assert matrices == whole - vectors
    assert abs(line.parameters - whole) < 0.02 * whole  # norms and biases of such small models
    assert line.positions == 128


@pytest.mark.parametrize("family", LAYOUTS)
def test_what_a_config_leaves_out_is_what_transformers_takes(family: str) -> None:
    """A config.json on the Hub may hold only what differs from the class."""
    given = {"model_type": family, **CHANGES.get(family, SIZES)}
    full = AutoConfig.for_model(**given).to_dict()
    short, whole = (line_of_config(config, "the model") for config in (given, full))
    assert short.linears == whole.linears
    assert short._replace(groups=whole.groups, head_size=whole.head_size) == whole


def test_phi_keeps_the_parts_of_its_activation() -> None:
    config = {**SIZES, "model_type": "phi"}
    assert not line_of_config(config, "phi").fused_gelu
    assert line_of_config({**config, "hidden_act": "gelu"}, "phi").fused_gelu


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="the extra gguf is missing")
def test_a_gguf_header_names_all_dimensions(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    path = tmp_path / "small.gguf"
    writer = GGUFWriter(path, "qwen2")
    writer.add_embedding_length(96)
    writer.add_block_count(3)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_feed_forward_length(160)
    writer.add_context_length(128)
    writer.add_token_list([f"token {number}" for number in range(300)])
    tensor = torch.zeros(300, 96).numpy()
    writer.add_tensor("token_embd.weight", tensor, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = line_of_config(
        {**SIZES, "model_type": "qwen2", "tie_word_embeddings": True}, "the same"
    )
    assert line_of_gguf(path) == expected


def test_what_is_not_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(b"not a model" * 20)
    with pytest.raises(ModelError, match=r"other\.gguf"):
        line_of_gguf(path)
