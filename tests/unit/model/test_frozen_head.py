"""The loss behind a frozen output layer: the same figures, without the scores of all rows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model import frozen_head
from model.frozen_head import FrozenHeadLoss

WORDS, WIDTH = 40, 8


def head(bound: float | None = None) -> Callable[[Tensor], Tensor]:
    """Return a frozen output layer, its scores bounded as Gemma's if asked for."""
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, WORDS).requires_grad_(False)

    def scores(states: Tensor) -> Tensor:
        made = layer(states).float()
        return made if bound is None else torch.tanh(made / bound) * bound

    return scores


@pytest.mark.parametrize("rows", [1, 3, 10, 128])
@pytest.mark.parametrize("bound", [None, 0.5])
def test_losses_and_gradients_are_those_of_the_whole_at_once(
    rows: int, bound: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_head, "ROWS", rows)
    scores, targets = head(bound), torch.arange(10) * 3
    states = torch.randn(10, WIDTH, requires_grad=True)
    weights = torch.linspace(-1, 2, 10)  # each token may count differently
    expected = nn.functional.cross_entropy(scores(states), targets, reduction="none")
    (wanted,) = torch.autograd.grad((expected * weights).sum(), states)
    found = FrozenHeadLoss.apply(states, targets, scores)
    (gradient,) = torch.autograd.grad((found * weights).sum(), states)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, wanted)


def test_autocast_gives_gradients_of_the_states_own_type() -> None:
    scores, targets = head(), torch.arange(10)
    states = torch.randn(10, WIDTH)
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = states.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = FrozenHeadLoss.apply(leaf, targets, scores)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
        made.append((loss, gradient.float()))
    torch.testing.assert_close(made[1], made[0], rtol=0.05, atol=0.03)
