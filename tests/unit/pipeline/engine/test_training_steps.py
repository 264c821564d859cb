"""How a step is computed where a CPU trains in bf16, and what stands for it in a measurement."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from model.language import add_lora, load_language_model
from pipeline.engine.training_steps import (
    ROWS,
    attention_by,
    fast_steps,
    language_product,
    training_attention,
)
from pipeline.errors import PipelineError


def gradients() -> list[torch.Tensor]:
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 40, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    mask = torch.ones(40, 40, dtype=torch.bool).tril()
    scaled_dot_product_attention(*parts, attn_mask=mask).float().square().sum().backward()
    return [part.grad for part in parts if part.grad is not None]


def test_attention_in_parts_has_the_gradients_of_the_fused_one() -> None:
    fused = gradients()
    with training_attention("cpu", "bf16"):
        in_parts = gradients()
    assert len(fused) == len(in_parts) == 3
    for ours, theirs in zip(in_parts, fused, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("device", "precision", "fused"),
    [("cpu", "bf16", False), ("cpu", "fp32", True), ("cuda", "bf16", True)],
)
def test_only_a_cpu_in_bf16_does_without_the_fused_kernel(
    device: str, precision: str, fused: bool
) -> None:
    seen = []

    def fail() -> None:
        with training_attention(device, precision):
            seen.append(torch.backends.cuda.flash_sdp_enabled())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [fused]
    assert torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()


def test_adapters_share_the_cast_input_of_their_layer_to_the_same_gradients(inputs: Path) -> None:
    model = load_language_model(inputs / "backbones/lm", torch.bfloat16)
    add_lora(model, rank=2, alpha=4, dropout=0.0, targets="all-linear")
    torch.manual_seed(0)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, std=0.1)

    def gradients_of_a_step() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=torch.arange(6)[None]).logits.float().square().mean()
        loss.backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return found

    with training_attention("cpu", "bf16"):
        before = gradients_of_a_step()
    with fast_steps("cpu", "bf16", "sdpa", model):
        after = gradients_of_a_step()
    assert len(after) > 4
    assert any(gradient.any() for gradient in after)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_attention_is_exchanged_for_a_training_and_put_back(inputs: Path) -> None:
    model = load_language_model(inputs / "backbones/lm")
    before = model.config._attn_implementation

    def fail() -> None:
        with attention_by("flex_attention", "cuda", model):
            assert model.config._attn_implementation == "flex_attention"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.config._attn_implementation == before


def test_what_flex_attention_cannot_train_is_refused_by_name(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_language_model(inputs / "backbones/lm")
    with pytest.raises(PipelineError, match="cannot be trained on a CPU"):
        attention_by("flex_attention", "cpu", model).__enter__()
    monkeypatch.setattr(type(model), "_supports_flex_attn", False)
    with pytest.raises(PipelineError, match="phi cannot be computed by flex_attention"):
        attention_by("flex_attention", "cuda", model).__enter__()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_the_measured_product_has_the_size_of_the_model(
    inputs: Path, precision: str, dtype: torch.dtype
) -> None:
    made = language_product(inputs / "backbones/lm", precision)()
    assert isinstance(made, torch.Tensor)
    assert made.shape == (ROWS, 32)  # as wide as its feed-forward layers
    assert made.dtype == dtype
