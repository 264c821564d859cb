"""Configs of the projectors, which map image patches to the language model's space.

The recipe holds one of these configs, and `plan` reads recipes without torch, so this file must
not import torch: `build` imports the modules of `model.blocks` when it is called. A config checks
itself against the encoder before anything is downloaded.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.errors import ModelError

if TYPE_CHECKING:
    import torch.nn

Count = Annotated[int, Field(gt=0)]
Reducer = Literal["none", "linear", "pool"]


class FrozenModel(BaseModel):
    """A frozen, complete group of choices; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PerPatchConfig(FrozenModel):
    """A projector that gives one token for each patch."""

    def tokens_out(self, patches: int) -> int:
        """How many prefix tokens `patches` patches become, without the separator."""
        return patches

    def validate_against(self, patches: int) -> None:
        """Check the projector against an encoder of `patches` patches; any number fits here."""


class LinearConfig(PerPatchConfig):
    """One Linear layer from the vision width to the language width."""

    kind: Literal["linear"] = "linear"

    def build(
        self, vision_width: int, patches: int, lm_width: int, lm_scale: float
    ) -> "torch.nn.Module":
        """The module; `patches` and `lm_scale` have no part in it."""
        from model.blocks import LinearProjector

        return LinearProjector(vision_width, lm_width)


class Mlp2xGeluConfig(PerPatchConfig):
    """LLaVA-1.5's projector: Linear, GELU, Linear (Liu et al. 2023, arXiv 2310.03744).

    It has no norm of its own, so that transformers' stock LLaVA class can load its weights.
    """

    kind: Literal["mlp2x_gelu"] = "mlp2x_gelu"

    def build(
        self, vision_width: int, patches: int, lm_width: int, lm_scale: float
    ) -> "torch.nn.Module":
        """The module; `patches` and `lm_scale` have no part in it."""
        from model.blocks import MlpProjector

        return MlpProjector(vision_width, lm_width)


class LateMixtureConfig(PerPatchConfig):
    """The reference's second projector: all its residual MLPs work at the language width."""

    kind: Literal["mixture_late"] = "mixture_late"
    layers: Count = Field(description="Residual MLPs at the language width.")

    def build(
        self, vision_width: int, patches: int, lm_width: int, lm_scale: float
    ) -> "torch.nn.Module":
        """The module, whose output has the root mean square `lm_scale`."""
        from model.blocks import LateProjector

        return LateProjector(vision_width, lm_width, self.layers, lm_scale)


class ReducingConfig(FrozenModel):
    """Fields and checks shared by the projectors that can reduce the number of patches."""

    reducer: Reducer = Field(
        description="none keeps every patch; linear mixes them with a learned matrix over the "
        "patch axis; pool averages neighbours on the square grid of patches."
    )
    tokens: Count = Field(description="Prefix tokens that come out, without the separator.")
    experts: int = Field(ge=2, description="Linear experts of the mixture.")
    layers: Count = Field(description="Residual MLPs at the vision width after the mixture.")
    balance_weight: float = Field(
        ge=0,
        description="Weight of the loss that keeps all experts in use. Switch Transformer takes "
        "0.01 for its sparse mixture; 0 leaves the gates alone.",
    )

    def tokens_out(self, patches: int) -> int:
        """How many prefix tokens `patches` patches become, without the separator."""
        self.validate_against(patches)
        return self.tokens

    def validate_against(self, patches: int) -> None:
        """Check the reducer against an encoder of `patches` patches.

        Raises:
            ModelError: The reducer cannot make `tokens` tokens out of that many patches.
        """
        given = f"the encoder gives {patches} patches and the projector's tokens is {self.tokens}"
        if self.reducer == "none" and self.tokens != patches:
            raise ModelError(given, f"set tokens to {patches}, or choose a reducer")
        if self.tokens > patches:
            raise ModelError(f"{given}: a reducer cannot add tokens", f"set at most {patches}")
        if self.reducer == "pool":
            for name, count in (("patches", patches), ("tokens", self.tokens)):
                if math.isqrt(count) ** 2 != count:
                    raise ModelError(
                        f"{given}: pooling needs square numbers, which {count} {name} is not",
                        "choose the linear reducer or another number of tokens",
                    )


class MixtureConfig(ReducingConfig):
    """The reference's first projector: reducer, dense mixture, residual MLPs, output, norm."""

    kind: Literal["mixture"] = "mixture"

    def build(
        self, vision_width: int, patches: int, lm_width: int, lm_scale: float
    ) -> "torch.nn.Module":
        """The module, whose output has the root mean square `lm_scale`.

        Raises:
            ModelError: The reducer does not fit `patches`.
        """
        from model.blocks import MixtureOfExperts, MixtureProjector, build_reducer

        self.validate_against(patches)
        return MixtureProjector(
            reducer=build_reducer(self.reducer, patches, self.tokens),
            mixture=MixtureOfExperts(vision_width, self.experts, self.balance_weight),
            layers=self.layers,
            lm_width=lm_width,
            lm_scale=lm_scale,
        )


class SparseMixtureConfig(ReducingConfig):
    """Like `mixture`, but every token is computed by its top-k experts only."""

    kind: Literal["sparse_mixture"] = "sparse_mixture"
    active: int = Field(
        ge=2,
        description="Experts per token. With one, the renormalised gate would be the constant 1 "
        "and learn nothing from the loss.",
    )

    @model_validator(mode="after")
    def _active_experts_exist(self) -> "SparseMixtureConfig":
        if self.active > self.experts:
            raise ModelError(f"active is {self.active}, but there are only {self.experts} experts")
        return self

    def build(
        self, vision_width: int, patches: int, lm_width: int, lm_scale: float
    ) -> "torch.nn.Module":
        """The module, whose output has the root mean square `lm_scale`.

        Raises:
            ModelError: The reducer does not fit `patches`.
        """
        from model.blocks import MixtureProjector, SparseMixtureOfExperts, build_reducer

        self.validate_against(patches)
        return MixtureProjector(
            reducer=build_reducer(self.reducer, patches, self.tokens),
            mixture=SparseMixtureOfExperts(
                vision_width, self.experts, self.active, self.balance_weight
            ),
            layers=self.layers,
            lm_width=lm_width,
            lm_scale=lm_scale,
        )


ProjectorConfig = Annotated[
    LinearConfig | Mlp2xGeluConfig | MixtureConfig | LateMixtureConfig | SparseMixtureConfig,
    Field(discriminator="kind"),
]
