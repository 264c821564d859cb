"""Exports as GGUF: read back they are the model, and misfits are refused."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from model.assistant import Assistant
from model.errors import ModelError
from model.gguf_template import go_template, jinja_template
from model.gguf_tokenizer import SEPARATOR, split_name
from model.llava import vision_weights
from model.projectors import LinearConfig
from pipeline.errors import PipelineError
from pipeline.publishing.export_obstacles import obstacles_of_recipe, plan_line
from pipeline.recipe.presets import preset
from tests.support.gguf_export import KINDS, export_gguf
from tests.support.llava_bundle import write_llava_bundle
from tests.support.tiny_bundle import MIXTURE


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    assert field is not None, name
    return field.contents()


def _read_back(exported: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        exported,
        gguf_file="model.gguf",
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )


# transformers reads no Phi-2 out of a GGUF file, and takes every head of a Qwen3 for 128 wide.
@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith(("phi", "qwen3"))])
def test_transformers_reads_the_same_language_model_back(tmp_path: Path, kind: str) -> None:
    bundle = write_llava_bundle(tmp_path / "bundle", **KINDS[kind])
    exported = export_gguf(tmp_path, bundle)
    assistant = Assistant(bundle)
    original: Any = assistant.vlm.language_model
    words = assistant.template.tokenizer.get_vocab_size()
    weights = _read_back(exported).state_dict()
    for name, tensor in original.state_dict().items():
        kept = words if name in ("model.embed_tokens.weight", "lm_head.weight") else len(tensor)
        assert torch.equal(weights[name][:kept], tensor[:kept]), name
    separator = weights["model.embed_tokens.weight"][words]
    assert torch.equal(separator, assistant.vlm.vision_prefix.separator)


@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_are_in_the_file_of_the_language_model(tmp_path: Path, kind: str) -> None:
    bundle = write_llava_bundle(tmp_path / "bundle", **KINDS[kind])
    reader = GGUFReader(export_gguf(tmp_path, bundle) / "model.gguf")
    original: Any = Assistant(bundle).vlm.language_model
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    assert all(tensor.tensor_type.name == "F32" for tensor in reader.tensors)
    tied = original.config.tie_word_embeddings
    assert len(stored) == len(original.state_dict()) - tied + ("rope_freqs.weight" in stored)
    assert ("rope_freqs.weight" in stored) == ("rotation" in KINDS[kind])
    layer = original.base_model.layers[1].mlp
    down = layer.fc2 if KINDS[kind]["family"] == "phi" else layer.down_proj
    assert np.array_equal(stored["blk.1.ffn_down.weight"], down.weight.detach().numpy())
    if "output.bias" in stored:
        words = Assistant(bundle).template.tokenizer.get_vocab_size()
        bias = original.get_output_embeddings().bias.detach().numpy()
        assert np.array_equal(stored["output.bias"][:words], bias[:words])
        assert (stored["output.bias"][words:] < -1000).all()


def test_the_tokenizer_reads_back_and_says_what_is_never_written(tmp_path: Path) -> None:
    bundle = write_llava_bundle(tmp_path / "bundle", **KINDS["qwen2, untied"])
    exported = export_gguf(tmp_path, bundle)
    read: Any = AutoTokenizer.from_pretrained(exported, gguf_file="model.gguf")
    ours = Tokenizer.from_file(str(bundle / "lm" / "tokenizer.json"))
    for text in ("What is in the image?", "It's 23 or\n  24 — größer!", "don't <|endoftext|>"):
        ids = ours.encode(text, add_special_tokens=False).ids
        assert read(text, add_special_tokens=False).input_ids == ids
    words = ours.get_vocab_size()
    assert read.convert_tokens_to_ids(SEPARATOR) == words
    reader = GGUFReader(exported / "model.gguf")
    assert _field(reader, "tokenizer.ggml.pre") == "gpt-2"
    assert _field(reader, "tokenizer.ggml.suppress_tokens") == list(range(words, words + 5))
    assert _field(reader, "tokenizer.ggml.eos_token_id") == ours.token_to_id("<|endoftext|>")
    assert _field(reader, "tokenizer.ggml.add_bos_token") is False
    kinds = _field(reader, "tokenizer.ggml.token_type")
    assert kinds[words:] == [gguf.TokenType.CONTROL] + [gguf.TokenType.UNUSED] * 4


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_the_vision_file_holds_the_tower_and_the_projector(
    tmp_path: Path, layer: int, kind: str
) -> None:
    projector = LinearConfig() if kind == "linear" else None
    bundle = write_llava_bundle(tmp_path / "bundle", layer=layer, projector=projector)
    reader = GGUFReader(export_gguf(tmp_path, bundle) / "mmproj.gguf")
    depth = 2 + layer + 1
    assert _field(reader, "general.architecture") == "clip"
    assert _field(reader, "clip.projector_type") == "mlp"
    assert _field(reader, "clip.vision.feature_layer") == [depth]
    assert _field(reader, "clip.vision.block_count") == depth
    assert _field(reader, "clip.vision.image_size") == 56
    assert _field(reader, "clip.use_gelu") is True
    config = json.loads((bundle / "clip" / "open_clip_config.json").read_text())
    mean = config["preprocess_cfg"]["mean"]
    assert _field(reader, "clip.vision.image_mean") == pytest.approx(mean)
    stored = {t.name: torch.from_numpy(np.array(t.data)) for t in reader.tensors}
    assert not any("post_ln" in name or f"blk.{depth}." in name for name in stored)
    tower = vision_weights(bundle / "clip")
    assert torch.equal(
        stored["v.blk.0.attn_q.weight"], tower["encoder.layers.0.self_attn.q_proj.weight"]
    )
    assert torch.equal(stored["v.patch_embd.weight"], tower["embeddings.patch_embedding.weight"])
    assert torch.equal(stored["v.class_embd"], tower["embeddings.class_embedding"])
    patches = torch.randn(5, 49, 32, generator=torch.Generator().manual_seed(0))
    hidden = patches @ stored["mm.0.weight"].T + stored["mm.0.bias"]
    bent = torch.nn.functional.gelu(hidden, approximate="tanh" if kind == "linear" else "none")
    found = bent @ stored["mm.2.weight"].T + stored["mm.2.bias"]
    with torch.no_grad():
        expected = Assistant(bundle).vlm.embed_images(patches).tokens[:, :-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_card_and_the_modelfile_say_how_to_use_the_files(tmp_path: Path) -> None:
    exported = export_gguf(tmp_path, write_llava_bundle(tmp_path / "bundle"))
    names = {path.name for path in exported.iterdir()}
    assert names == {
        *("model.gguf", "mmproj.gguf", "Modelfile", "README.md", "provenance.json", "SHA256SUMS"),
    }
    card = ModelCard.load(exported / "README.md")
    assert "llama-mtmd-cli -m model.gguf --mmproj mmproj.gguf" in card.text
    assert "Resize(56, InterpolationMode.BICUBIC)" in card.text
    assert "issue 25814" in card.text
    modelfile = (exported / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./model.gguf\nFROM ./mmproj.gguf\nTEMPLATE")
    assert "PARAMETER num_predict 12" in modelfile
    template = Assistant(tmp_path / "bundle").template
    assert f'"""{go_template(template)}"""' in modelfile
    reader = GGUFReader(exported / "model.gguf")
    assert _field(reader, "tokenizer.chat_template") == jinja_template(template)


def test_a_bfloat16_language_model_keeps_its_matrices(tmp_path: Path) -> None:
    bundle = write_llava_bundle(tmp_path / "bundle", dtype=torch.bfloat16)
    exported = export_gguf(tmp_path, bundle)
    stored = GGUFReader(exported / "model.gguf").tensors
    kinds = {(len(tensor.shape) > 1, tensor.tensor_type.name) for tensor in stored}
    assert kinds == {(True, "BF16"), (False, "F32")}
    weights = _read_back(exported).state_dict()
    for name, tensor in load_file(bundle / "lm" / "model.safetensors").items():
        assert torch.equal(weights[name][: len(tensor)], tensor.float()), name


def test_what_does_not_fit_is_refused_with_the_field_to_change(tmp_path: Path) -> None:
    bundle = write_llava_bundle(tmp_path / "mixture", family="phi3", tied=False, projector=MIXTURE)
    with pytest.raises(PipelineError) as refused:
        export_gguf(tmp_path, bundle)
    assert "llama.cpp cannot hold this assistant" in str(refused.value)
    assert "pretrain.projector.kind is mixture" in str(refused.value)
    assert "backbones.lm_repository is a 'phi3'" in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_act", "relu", "hidden_act is relu and not silu"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "linear"),
    ],
)
def test_a_language_model_that_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, field: str, value: Any, said: str
) -> None:
    bundle = write_llava_bundle(tmp_path / "bundle")
    path = bundle / "lm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(PipelineError, match=said):
        export_gguf(tmp_path, bundle)


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused() -> None:
    known: Any = {
        "model": {"type": "BPE"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    }
    assert split_name(known) == "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    steps = [digits, known["pre_tokenizer"]]
    assert split_name(known | {"pre_tokenizer": {"pretokenizers": steps}}) == "smollm"
    with pytest.raises(ModelError, match="not one of the byte-level BPEs"):
        split_name(known | {"model": {"type": "BPE", "byte_fallback": True}})
    with pytest.raises(ModelError, match="Unigram"):
        split_name({"model": {"type": "Unigram"}, "pre_tokenizer": {"type": "Metaspace"}})
    with pytest.raises(ModelError, match="Whitespace, ByteLevel"):
        split_name(known | {"pre_tokenizer": {"pretokenizers": [{"type": "Whitespace"}, steps[1]]}})


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe"])
def test_splits_by_a_pattern_are_those_that_transformers_reads(name: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    split = {"Regex": GGUF_PRE_TOKENIZER_SPLITS[name]}
    stated = {
        "model": {"type": "BPE", "ignore_merges": name == "llama-bpe"},
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": split},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
    }
    assert split_name(stated) == name


def test_plan_says_before_training_what_to_change() -> None:
    fits = {"pretrain.projector": {"kind": "mlp2x_gelu"}}
    assert obstacles_of_recipe(preset("small").override(fits), "gguf") == []
    coco = plan_line(preset("coco").override(fits), "gguf")
    assert coco.startswith("export --format gguf: possible")  # Phi-2, with its bias
    assert "25814" in coco
    demo = plan_line(preset("demo"), "gguf")
    assert "pretrain.projector.kind is" in demo
    assert "backbones.kind" not in demo
    neox = preset("small").override(fits | {"backbones.lm_repository": "somebody/model"})
    assert "if the language model is llama, mistral, phi" in plan_line(neox, "gguf")
