"""The loss of words behind a frozen output layer, without keeping their scores.

As in Liger Kernel (Hsu et al. 2024, arXiv 2410.10989), the gradient is made with the loss, some
rows at a time, so that the scores of a batch, the largest tensor of a step, never exist at once.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

# Scores of 128 rows and 49,152 words take 25 MB. glibc returns blocks above 32 MB to the system
# when they are freed, and each new one costs a page fault per page.
ROWS = 128


class FrozenHeadLoss(torch.autograd.Function):
    """Negative log-likelihood of targets; only the hidden states get a gradient.

    Each row's loss depends on its own state alone, so its gradient is a vector that is made in the
    forward pass and multiplied by the gradient of the loss in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Float[Tensor, "target language"],
        targets: Int64[Tensor, "target"],
        scores: Callable[[Tensor], Tensor],
    ) -> Float32[Tensor, "target"]:
        """Return the loss of each target in nats.

        Args:
            ctx: Keeps the gradient.
            states: Hidden states that predict the targets.
            targets: Token ids.
            scores: Gives the scores [row, word] of all words after states [row, language].
        """
        losses, gradients = [], []
        with torch.enable_grad():
            for some, wanted in zip(states.split(ROWS), targets.split(ROWS), strict=True):
                leaf = some.detach().requires_grad_()
                loss = nn.functional.cross_entropy(scores(leaf), wanted, reduction="none")
                loss.sum().backward()
                gradients.append(leaf.grad)
                losses.append(loss.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the states."""
        (gradients,) = ctx.saved_tensors
        return gradients * outputs[0].unsqueeze(1).to(gradients.dtype), None, None
