"""How the next token is chosen when text is generated, as a value; imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from model.projectors import FrozenModel


class GreedyConfig(FrozenModel):
    """Always the likeliest token; published scores use this."""

    kind: Literal["greedy"] = "greedy"


class BeamConfig(FrozenModel):
    """Beam search: the likeliest of several texts that are grown side by side."""

    kind: Literal["beam"] = "beam"
    beams: int = Field(ge=1, description="Texts grown side by side; 1 is greedy.")
    length_penalty: float = Field(
        description="Exponent of the length by which a text's log-likelihood is divided."
    )


class TopPConfig(FrozenModel):
    """Nucleus sampling (Holtzman et al. 2019, arXiv 1904.09751)."""

    kind: Literal["top_p"] = "top_p"
    top_p: float = Field(gt=0, le=1, description="Probability mass that is sampled from.")
    temperature: float = Field(gt=0, description="Divisor of the logits before sampling.")
    seed: int = Field(ge=0, description="Seed of the draws; the same seed gives the same text.")


GenerationConfig = Annotated[GreedyConfig | BeamConfig | TopPConfig, Field(discriminator="kind")]
