"""A projector's parameters and what it keeps for its backward pass, from its config alone.

The modules are in `model.blocks`; a test compares the counts with them.
"""

from typing import NamedTuple

from model.projectors import (
    LateMixtureConfig,
    LinearConfig,
    Mlp2xGeluConfig,
    ProjectorConfig,
    SparseMixtureConfig,
)


class ProjectorCosts(NamedTuple):
    """Costs of projector and separator.

    Attributes:
        matrices: Parameters of matrices; experts are matrices.
        vectors: All others.
        kept: Numbers of each prefix token kept for the backward pass, in the type of the products.
        kept_single: Numbers kept in float32 whatever the precision.
        idle: Of the matrices, those of experts that a token does not go to.
    """

    matrices: int
    vectors: int
    kept: int
    kept_single: int
    idle: int = 0

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.matrices + self.vectors


def projector_costs(config: ProjectorConfig, vision: int, patches: int, lm: int) -> ProjectorCosts:
    """Return what a projector costs, given the widths of patch embeddings and language model."""
    if isinstance(config, LinearConfig):
        return ProjectorCosts(vision * lm, 2 * lm, vision, 0)
    if isinstance(config, Mlp2xGeluConfig):
        return ProjectorCosts(vision * lm + lm * lm, 3 * lm, vision + 2 * lm, 0)
    if isinstance(config, LateMixtureConfig):
        matrices = vision * lm + 2 * config.layers * lm * lm
        vectors = lm * (1 + 2 + 2 * config.layers + 1 + 1)
        return ProjectorCosts(matrices, vectors, vision + 3 * config.layers * lm, 2 * lm)
    experts, layers, tokens = config.experts, config.layers, config.tokens
    reducer = patches * tokens if config.reducer == "linear" else 0
    active = config.active if isinstance(config, SparseMixtureConfig) else experts
    return ProjectorCosts(
        matrices=reducer + vision * experts + (experts + 2 * layers) * vision**2 + vision * lm,
        vectors=(tokens if reducer else 0) + experts * (1 + vision) + 2 * layers * vision + 3 * lm,
        # Gate and experts read the token, the mixture its experts' outputs, a residual MLP its
        # input and both sides of its GELU, the output layer its input.
        kept=vision * (1 + active + 3 * layers + 1)
        + 2 * experts
        + (vision * patches // tokens if reducer else 0),
        kept_single=lm,
        idle=(experts - active) * vision**2,
    )
