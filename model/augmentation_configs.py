"""How images are varied in training, as a value; imports no torch."""

from pydantic import Field

from model.projectors import FrozenModel


class AugmentationConfig(FrozenModel):
    """Variations of the stored patch embeddings, drawn anew in each step; 0 and 0: none."""

    mirrored: float = Field(
        ge=0,
        le=1,
        description="Share of the rows whose grid of patches has left and right exchanged; 0 "
        "where texts tell left from right, or the grid is not square.",
    )
    dropped: float = Field(
        ge=0, lt=1, description="Share of the patches that are replaced by the mean patch."
    )

    @property
    def none(self) -> bool:
        """Whether images stay as they are."""
        return self.mirrored == self.dropped == 0
