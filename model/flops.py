"""Floating-point operations of training, counted from parameters and positions.

A matrix of P parameters costs 2P operations for each position forward, 2P for the gradient of its
input and, if it is trained, 2P for its own gradient (Kaplan et al. 2020, arXiv 2001.08361). The
gradient of the input is always needed, because the projector learns below the language model.
Attention adds 2 products of every position with those it sees, forward, and twice that backward.
Recomputed activations are not counted: they are the price of memory, not work on the data.
`plan` counts too, so this file must not import torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.objective_configs import (
    MixedByLengthConfig,
    MixedConfig,
    ObjectiveConfig,
    ScheduledSamplingConfig,
)

if TYPE_CHECKING:
    from torch import nn

    from model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Weights:
    """Matrix parameters of one part of a model.

    Attributes:
        frozen: Those that are not trained.
        trained: Those that are.
    """

    frozen: int
    trained: int

    @property
    def forward(self) -> int:
        """Operations per position, forward."""
        return 2 * (self.frozen + self.trained)

    @property
    def backward(self) -> int:
        """Operations per position, backward."""
        return 2 * self.frozen + 4 * self.trained


@dataclass(frozen=True)
class Size:
    """The sizes of a model that determine the work of a training step.

    Attributes:
        prefix: Projector; works on every patch. Of a sparse mixture, only as many experts as a
            patch goes to.
        layers: Decoder layers; work on every position.
        head: Output layer; works on every supervised token.
        attention: Layers times width.
        prefix_tokens: Positions of an image, the separator included.
    """

    prefix: Weights
    layers: Weights
    head: Weights
    attention: int
    prefix_tokens: int


def size_of(vlm: "VisionLanguageModel", prefix_tokens: int) -> Size:
    """Return the size of a model; it may be on the meta device, without any weights."""
    from model.language_parts import head_of, layers_of

    language_model = vlm.language_model
    config, prefix = language_model.config, _weights(vlm.vision_prefix)
    return Size(
        prefix=Weights(prefix.frozen, prefix.trained - _idle(vlm.vision_prefix)),
        layers=_weights(layers_of(language_model)),
        head=_weights(head_of(language_model)),
        attention=config.num_hidden_layers * config.hidden_size,
        prefix_tokens=prefix_tokens,
    )


def _weights(module: "nn.Module") -> Weights:
    named = module.named_parameters()
    matrices = [p for name, p in named if p.ndim >= 2 and not name.endswith("bias")]
    trained = sum(p.numel() for p in matrices if p.requires_grad)
    return Weights(sum(p.numel() for p in matrices) - trained, trained)


def _idle(module: "nn.Module") -> int:
    """Return the parameters of experts that a patch does not go to."""
    from model.blocks import SparseMixtureOfExperts

    mixtures = [each for each in module.modules() if isinstance(each, SparseMixtureOfExperts)]
    return sum(m.weight.numel() // m.experts * (m.experts - m.active) for m in mixtures)


def passes_before(objective: ObjectiveConfig) -> float:
    """Return the mean number of forward passes without gradient before the trained one."""
    if isinstance(objective, ScheduledSamplingConfig):
        return objective.passes
    if isinstance(objective, MixedConfig):
        return objective.scheduled_share * objective.scheduled.passes
    return objective.scheduled.passes if isinstance(objective, MixedByLengthConfig) else 0


def training_flops(
    size: Size, *, rows: float, text_tokens: float, targets: float, before: float
) -> float:
    """Return the operations of a forward and backward pass, padding not counted.

    Every row is assumed to be as long as the mean row and to see all of itself, which only matters
    for attention, a hundredth of the work at a hundred positions of Phi-2.

    Args:
        size: The model.
        rows: Images with their text.
        text_tokens: Tokens of all texts.
        targets: Supervised tokens.
        before: Forward passes without gradient before it.
    """
    positions = rows * size.prefix_tokens + text_tokens
    attention = 4 * size.attention * positions * (positions / rows + 1) / 2
    parts = (
        (size.prefix, rows * size.prefix_tokens, 0.0),
        (size.layers, positions, attention),
        (size.head, targets, 0.0),
    )
    forward = sum(part.forward * count + more for part, count, more in parts)
    backward = sum(part.backward * count + 2 * more for part, count, more in parts)
    return (1 + before) * forward + backward
