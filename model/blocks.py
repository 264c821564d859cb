"""The projectors' modules: patch reducers, mixtures of experts, residual MLPs, output and norm.

Every projector returns a `Projection`, which carries the routing figures beside the tokens.
Nothing is kept on the module between calls, so the same code works under activation
checkpointing, torch.compile and several forward passes per step.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-6


class Projection(NamedTuple):
    """What a projector returns.

    A tuple, because FSDP finds the tensors of tuples but not those of dataclasses.

    Attributes:
        tokens: [batch, token, language] float; prefix tokens.
        auxiliary_loss: Scalar float32, already weighted; 0 where there is nothing to balance.
        expert_usage: [expert] float32 that sums to 1: each expert's share of the tokens. It has
            length 0 where there are no experts, and carries no gradient.
    """

    tokens: Tensor
    auxiliary_loss: Tensor
    expert_usage: Tensor


def _without_experts(tokens: Float[Tensor, "batch token width"]) -> Projection:
    nothing = torch.zeros((), device=tokens.device)
    return Projection(tokens, nothing, torch.zeros(0, device=tokens.device))


class LinearProjector(nn.Module):
    """One Linear layer per patch, with torch's own initialisation."""

    def __init__(self, vision_width: int, lm_width: int) -> None:
        super().__init__()
        self.output = nn.Linear(vision_width, lm_width)

    def forward(self, patches: Float[Tensor, "batch patch vision"]) -> Projection:
        """Tokens [batch, patch, language]."""
        return _without_experts(self.output(patches))


class MlpProjector(nn.Module):
    """Linear, GELU, Linear per patch, with the names transformers' LLaVA gives the two layers."""

    def __init__(self, vision_width: int, lm_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, lm_width)
        self.linear_2 = nn.Linear(lm_width, lm_width)

    def forward(self, patches: Float[Tensor, "batch patch vision"]) -> Projection:
        """Tokens [batch, patch, language]."""
        return _without_experts(self.linear_2(functional.gelu(self.linear_1(patches))))


class ResidualMlp(nn.Module):
    """x + Linear(GELU(Linear(x))), all at one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """The tokens with the MLP's correction added."""
        return tokens + self.down(functional.gelu(self.up(tokens)))


class LinearReducer(nn.Module):
    """A learned matrix over the patch axis: every output token mixes all patches."""

    def __init__(self, patches: int, tokens: int) -> None:
        super().__init__()
        self.mix = nn.Linear(patches, tokens)

    def forward(
        self, patches: Float[Tensor, "batch patch vision"]
    ) -> Float[Tensor, "batch token vision"]:
        """Tokens at the vision width."""
        return self.mix(patches.transpose(1, 2)).transpose(1, 2)


class GridPool(nn.Module):
    """Average pooling over the square grid of patches, in row-major order, without parameters."""

    def __init__(self, side_in: int, side_out: int) -> None:
        super().__init__()
        self.side_in = side_in
        self.side_out = side_out

    def forward(
        self, patches: Float[Tensor, "batch patch vision"]
    ) -> Float[Tensor, "batch token vision"]:
        """Tokens at the vision width; windows overlap where the sides do not divide."""
        grid = patches.transpose(1, 2).unflatten(2, (self.side_in, self.side_in))
        pooled = functional.adaptive_avg_pool2d(grid, self.side_out)
        return pooled.flatten(2).transpose(1, 2)


def build_reducer(kind: str, patches: int, tokens: int) -> nn.Module:
    """The module of a reducer kind: none, linear or pool (checked by the config)."""
    if kind == "linear":
        return LinearReducer(patches, tokens)
    if kind == "pool":
        return GridPool(round(patches**0.5), round(tokens**0.5))
    return nn.Identity()


class MixtureOfExperts(nn.Module):
    """Dense mixture: all linear experts on every token, weighted by a softmax gate per token.

    Without a balancing loss, the gates give nearly all weight to one expert. The auxiliary loss is
    the squared coefficient of variation of the experts' shares (Shazeer et al. 2017, arXiv
    1701.06538, equation 6), which is 0 where all experts have equal shares of the batch.
    """

    def __init__(self, width: int, experts: int, balance_weight: float) -> None:
        super().__init__()
        self.width = width
        self.experts = experts
        self.balance_weight = balance_weight
        self.gate = nn.Linear(width, experts)
        self.weight = nn.Parameter(torch.empty(experts, width, width))
        self.bias = nn.Parameter(torch.empty(experts, width))
        bound = width**-0.5  # nn.Linear's own initialisation, for the stacked experts
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def probabilities(self, tokens: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows expert"]:
        """The softmax over experts, in float32."""
        return self.gate(tokens).softmax(dim=-1, dtype=torch.float32)

    def gates(self, tokens: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows expert"]:
        """The weight of every expert for every token; weights of a token sum to 1."""
        return self.probabilities(tokens)

    def forward(self, tokens: Float[Tensor, "batch token width"]) -> Projection:
        """Mixed tokens at the same width, and the weighted balancing loss."""
        gates = self.gates(tokens)
        usage = gates.mean(dim=(0, 1))
        imbalance = self.experts * usage.square().sum() - 1
        # Weighting the outputs, not the inputs, gives the gates their gradient without a matrix
        # product: 206 ms became 131 for six experts of width 768 on patches, on one core.
        outputs = functional.linear(tokens, self.weight.flatten(0, 1), self.bias.flatten())
        outputs = outputs.unflatten(-1, (self.experts, -1))
        mixed = (outputs * gates.unsqueeze(-1).to(outputs.dtype)).sum(dim=-2)
        return Projection(mixed, self.balance_weight * imbalance, usage.detach())


class SparseMixtureOfExperts(MixtureOfExperts):
    """Top-k mixture: each token goes to its k likeliest experts, with renormalised gates.

    The load-balancing loss is that of Switch Transformer (Fedus et al. 2021, arXiv 2101.03961):
    experts * sum(share of assignments * mean probability), which is 1 where all experts are used
    equally. Tokens are sorted by expert, so that each expert is one matrix product.
    """

    def __init__(self, width: int, experts: int, active: int, balance_weight: float) -> None:
        super().__init__(width, experts, balance_weight)
        self.active = active

    def gates(self, tokens: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows expert"]:
        """The weight of every expert for every token: k are above 0, and they sum to 1."""
        probabilities = self.probabilities(tokens)
        top, chosen = probabilities.topk(self.active, dim=-1)
        shares = top / top.sum(dim=-1, keepdim=True)
        return torch.zeros_like(probabilities).scatter(-1, chosen, shares)

    def forward(self, tokens: Float[Tensor, "batch token width"]) -> Projection:
        """Mixed tokens at the same width, and the weighted load-balancing loss."""
        flat = tokens.flatten(0, 1)
        probabilities = self.probabilities(flat)
        top, chosen = probabilities.topk(self.active, dim=-1)
        shares = (top / top.sum(dim=-1, keepdim=True)).to(tokens.dtype)
        counts = chosen.flatten().bincount(minlength=self.experts)
        outputs = self._run_experts(flat, chosen, counts.tolist())
        mixed = (outputs * shares.unsqueeze(-1)).sum(dim=1).view_as(tokens)
        usage = counts.float() / counts.sum()
        balance = self.experts * (usage * probabilities.mean(dim=0)).sum()
        return Projection(mixed, self.balance_weight * balance, usage)

    def _run_experts(
        self, flat: Tensor, chosen: Tensor, counts: list[int]
    ) -> Float[Tensor, "rows active width"]:
        """Each token's output of each of its experts; `counts` are assignments per expert."""
        order = chosen.flatten().argsort(stable=True)
        groups = flat[order // self.active].split(counts)
        sorted_outputs = torch.cat(
            [
                functional.linear(group, weight, bias)
                for group, weight, bias in zip(groups, self.weight, self.bias, strict=True)
            ]
        )
        return sorted_outputs[order.argsort()].unflatten(0, (-1, self.active))


class ScaledNorm(nn.RMSNorm):
    """An RMSNorm whose output has the root mean square `scale` until training changes it."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__(width, eps=NORM_EPS)
        nn.init.constant_(self.weight, scale)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """The normed tokens, in the type of the gain: float32 under autocast."""
        return super().forward(x.to(self.weight.dtype))


class MixtureProjector(nn.Module):
    """Reducer, mixture, residual MLPs at the vision width, output layer, norm.

    The norm's gain starts at `lm_scale`, the root mean square of the language model's word
    embeddings, so that the prefix enters at the scale the model knows.
    """

    def __init__(
        self,
        reducer: nn.Module,
        mixture: MixtureOfExperts,
        layers: int,
        lm_width: int,
        lm_scale: float,
    ) -> None:
        super().__init__()
        self.reducer = reducer
        self.mixture = mixture
        self.layers = nn.Sequential(*(ResidualMlp(mixture.width) for _ in range(layers)))
        self.output = nn.Linear(mixture.width, lm_width)
        self.norm = ScaledNorm(lm_width, lm_scale)

    def forward(self, patches: Float[Tensor, "batch patch vision"]) -> Projection:
        """Tokens [batch, token, language] with the mixture's routing figures."""
        mixed = self.mixture(self.reducer(patches))
        return mixed._replace(tokens=self.norm(self.output(self.layers(mixed.tokens))))


class LateProjector(nn.Module):
    """Linear to the language width, LayerNorm, residual MLPs at that width, norm."""

    def __init__(self, vision_width: int, lm_width: int, layers: int, lm_scale: float) -> None:
        super().__init__()
        self.input = nn.Linear(vision_width, lm_width)
        self.input_norm = nn.LayerNorm(lm_width)
        self.layers = nn.Sequential(*(ResidualMlp(lm_width) for _ in range(layers)))
        self.norm = ScaledNorm(lm_width, lm_scale)

    def forward(self, patches: Float[Tensor, "batch patch vision"]) -> Projection:
        """Tokens [batch, patch, language]."""
        return _without_experts(self.norm(self.layers(self.input_norm(self.input(patches)))))
