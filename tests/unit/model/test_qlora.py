"""QLoRA as far as it goes without CUDA: its config, its refusals, and what it merges into."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, PreTrainedModel

import model.vlm_loading
import pipeline.training.finetune
from model.language import load_language_model, nf4
from pipeline.errors import PipelineError
from tests.support.training_inputs import Choices, context_of

pytestmark = pytest.mark.timeout(600)
QLORA = Choices(stage="finetune", method="lora", quantize="nf4", epochs=2.0)


def test_frozen_layers_are_kept_as_qlora_keeps_them() -> None:
    config = nf4(torch.bfloat16)
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_what_is_trained_cannot_be_packed() -> None:
    with pytest.raises(ValidationError, match="quantize nf4 needs method lora"):
        Choices(stage="finetune", method="full", quantize="nf4").part()


def test_without_cuda_it_is_refused_before_anything_is_loaded(inputs: Path, tmp_path: Path) -> None:
    context = context_of(inputs, tmp_path)
    with pytest.raises(PipelineError, match=r"needs a CUDA device[\s\S]*finetune.quantize=none"):
        QLORA.run(context)
    assert not any(tmp_path.glob("*/*"))


def rounded(
    folder: Path, dtype: torch.dtype, quantization: BitsAndBytesConfig | None, device: str
) -> PreTrainedModel:
    """A stand-in for packed weights: layers whose weights have few bits, on the CPU."""
    found = load_language_model(folder, dtype, device=device)
    if quantization is not None:
        for name, parameter in found.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.data = (parameter.data * 8).round() / 8
    return found


def test_adapters_are_merged_into_the_layers_as_they_are_not_as_they_were_packed(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.training.finetune, "check_quantization", lambda settings: None)
    monkeypatch.setattr(model.vlm_loading, "load_language_model", rounded)
    context = context_of(inputs, tmp_path)
    QLORA.run(context)
    base = load_file(inputs / "backbones/lm/model.safetensors")
    merged = load_file(context.out / "lm/model.safetensors")
    adapters = load_file(context.out / "adapters.safetensors")
    assert merged.keys() == base.keys()
    adapted = 0
    for name, weight in base.items():
        expected = weight + _correction(adapters, name)
        adapted += int(not torch.equal(expected, weight))
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=1e-6, msg=name)
    assert adapted == 2 * 3  # q_proj, dense and fc1 of both layers


def _correction(adapters: dict[str, torch.Tensor], name: str) -> Any:
    down = adapters.get(f"language_model.{name.removesuffix('.weight')}.lora_A.default.weight")
    up = adapters.get(f"language_model.{name.removesuffix('.weight')}.lora_B.default.weight")
    return 0.0 if down is None or up is None else up @ down * 8 / 4  # alpha over rank
