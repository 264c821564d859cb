"""The adapter that is added in place computes what peft's own layer computes."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn

from model.lora_linear import InPlaceLora


def layers(**config: Any) -> tuple[Linear, InPlaceLora]:
    """Return peft's layer and ours with the same weights, an adapter that is not zero."""
    torch.manual_seed(0)
    chosen: dict[str, Any] = {"r": 3, "lora_alpha": 6, "lora_dropout": 0.0, **config}
    base = nn.Linear(8, 12, bias=True).requires_grad_(False)
    settings = LoraConfig(**chosen)
    made = [
        kind(base, "default", config=settings, r=3, lora_alpha=6) for kind in (Linear, InPlaceLora)
    ]
    made[0].lora_B["default"].weight.data.normal_()
    made[1].load_state_dict(made[0].state_dict())
    return made[0], made[1]


def passed(layer: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return a layer's result and the gradients of its inputs and adapters."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # dropout
    made = layer(x)
    weights = [p for p in layer.parameters() if p.requires_grad]
    return made, list(torch.autograd.grad(made.float().square().sum(), [x, *weights]))


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 5, 8), (2, 3, 5, 8)])
@pytest.mark.parametrize("config", [{}, {"lora_dropout": 0.5}, {"use_rslora": True}])
def test_results_and_gradients_are_those_of_peft(
    shape: tuple[int, ...], config: dict[str, Any]
) -> None:
    theirs, ours = layers(**config)
    x = torch.randn(shape)
    expected, found = passed(theirs, x), passed(ours, x)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_autocast_computes_in_its_type_whatever_that_of_the_weights() -> None:
    theirs, ours = layers()
    for base in (torch.float32, torch.bfloat16):
        for layer in (theirs, ours):
            layer.base_layer.to(base)
        x = torch.randn(2, 5, 8)
        with torch.autocast("cpu", torch.bfloat16):
            expected, found = passed(theirs, x), passed(ours, x)
        assert found[0].dtype == expected[0].dtype == torch.bfloat16
        torch.testing.assert_close(found[0], expected[0], rtol=0.03, atol=0.03)
        for one, other in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(one, other, rtol=0.05, atol=0.2)


def test_adapters_in_another_type_than_the_layer_are_left_to_peft() -> None:
    theirs, ours = layers()
    for layer in (theirs, ours):
        layer.base_layer.to(torch.bfloat16)
    x = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    assert torch.equal(ours(x), theirs(x))


def test_what_is_switched_off_or_merged_adds_nothing_twice() -> None:
    _, ours = layers()
    x = torch.randn(2, 5, 8)
    adapted = ours(x)
    ours.enable_adapters(False)
    assert torch.equal(ours(x), ours.base_layer(x))
    ours.enable_adapters(True)
    ours.merge()
    torch.testing.assert_close(ours(x), adapted)
    assert torch.equal(ours(x), ours.base_layer(x))


def test_other_kinds_of_adapters_are_computed_by_peft() -> None:
    theirs, ours = layers(use_dora=True)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    theirs, ours = layers(lora_bias=True)
    theirs.lora_B["default"].bias.data.fill_(3.0)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
