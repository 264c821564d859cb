"""How attention is computed where a CPU trains in bf16."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pipeline.devices import training_attention


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
