"""A language model out of a GGUF file: a tiny Llama that this test writes itself."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from model.errors import ModelError
from model.gguf_model import write_gguf_model
from model.language import load_language_model
from model.prompt import PromptTemplate
from pipeline.data.lm_folder import eos_id

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *LETTERS, "ab", "Ġ", "Ċ", ":", "?"]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return query or key rows in llama.cpp's order, which pairs what transformers keeps apart."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """Write a model as llama.cpp's converter does, in float32."""
    config, state = model.config, {k: v.numpy() for k, v in model.state_dict().items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        for name in "qkvo":
            weight = state[f"{ours}self_attn.{name}_proj.weight"]
            weight = interleaved(weight, heads[name]) if name in heads else weight
            target = "attn_output" if name == "o" else f"attn_{name}"
            writer.add_tensor(f"{theirs}{target}.weight", weight)
        for name in ("gate", "up", "down"):
            writer.add_tensor(f"{theirs}ffn_{name}.weight", state[f"{ours}mlp.{name}_proj.weight"])
        writer.add_tensor(f"{theirs}attn_norm.weight", state[f"{ours}input_layernorm.weight"])
        writer.add_tensor(
            f"{theirs}ffn_norm.weight", state[f"{ours}post_attention_layernorm.weight"]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    return tmp_path / "tiny.gguf"


def test_a_gguf_file_becomes_an_ordinary_folder(path: Path, tmp_path: Path) -> None:
    count = write_gguf_model(path, tmp_path / "lm", "tiny.gguf")
    original = tiny_llama()
    assert count == sum(p.numel() for p in original.parameters())
    loaded = load_language_model(tmp_path / "lm", torch.bfloat16)
    expected = original.to(torch.bfloat16).state_dict()
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    config = json.loads((tmp_path / "lm/config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert eos_id(tmp_path / "lm") == 2


def test_its_tokenizer_keeps_control_tokens_out_of_text(path: Path, tmp_path: Path) -> None:
    write_gguf_model(path, tmp_path / "lm", "tiny.gguf")
    assert Tokenizer.from_file(str(tmp_path / "lm/tokenizer.json")).get_vocab_size() == len(WORDS)
    template = PromptTemplate.load(tmp_path / "lm", 2, "", ":")
    assert 1 not in template.encode("ab <|im_start|> c")
    assert template.decode(template.encode("abc de")) == "abc de"


def test_the_same_file_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gguf_model(path, tmp_path / name, "tiny.gguf")
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "ab"
    )
    assert first == second


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match="mine is not a GGUF file"):
        write_gguf_model(text, tmp_path / "lm", "mine")
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "no-such-architecture")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="mine holds no language model that can be read"):
        write_gguf_model(tmp_path / "odd.gguf", tmp_path / "lm", "mine")


def test_without_the_package_the_extra_is_named(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.gguf_model.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'phivision\[gguf\]'"):
        write_gguf_model(path, tmp_path / "lm", "mine")
