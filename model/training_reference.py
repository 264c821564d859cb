"""Whether an image is far from those that a model was trained on, by its nearest neighbour.

The test of Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors" (arXiv
2204.06507), with one neighbour. An image is the mean over its patch embeddings, scaled to length 1:
float32 [vision], without a unit. It is far where its greatest cosine similarity to the reference,
float16 [image, vision] of training images, is below a threshold: the 1st percentile of what the
reference's own images reach, each compared to the others. So about 1 % of images like the training
images get a warning, too. One matrix product decides.

The training set's mean is not subtracted. With the demo's encoder, 98 to 99 % of 331 photographs
of COCO fall below the threshold like this, and 97 to 98 % where it is subtracted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float16, Float32
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

REFERENCE = "reference.safetensors"
SHARE = 0.01  # of the reference's own images that are below the threshold
FEWEST = 2  # images needed to compare one to another
_KEY = "pooled"
_DIGITS = 6  # of the threshold: float32 has no more


@dataclass(frozen=True, eq=False)
class TrainingReference:
    """Training images to which other images are compared.

    Attributes:
        pooled: Pooled embeddings of training images, float16 [image, vision], each of length 1.
        least_similarity: Cosine similarity, -1 to 1, below which an image is far from them.
        what: What kind of images they are, in one phrase.
    """

    pooled: Float16[Tensor, "image vision"]
    least_similarity: float
    what: str

    def similarity(self, patches: Float32[Tensor, "patch vision"]) -> float:
        """Return the greatest cosine similarity, -1 to 1, of an image to the training images.

        Of two encoders' joined embeddings, those of the first are compared.
        """
        first = patches[:, : self.pooled.shape[1]]
        return float((self.pooled.float() @ pool(first.cpu())).max())

    def warning(self, patches: Float32[Tensor, "patch vision"]) -> str:
        """Return a sentence about an image that is far from the training images, else ""."""
        if self.similarity(patches) >= self.least_similarity:
            return ""
        return (
            f"this image is unlike those the model was trained on ({self.what}): "
            "the answer may be a guess"
        )

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the embeddings beside a bundle's card and return the card's entries about them."""
        save_file({_KEY: self.pooled.contiguous()}, folder / REFERENCE)
        return {"compared": len(self.pooled), "least_similarity": self.least_similarity}


def pool(patches: Float[Tensor, "*image patch vision"]) -> Float[Tensor, "*image vision"]:
    """Return the mean over patches, scaled to length 1, of one image or of many."""
    return nn.functional.normalize(patches.mean(dim=-2), dim=-1)


def make_reference(pooled: Float32[Tensor, "image vision"], what: str) -> TrainingReference:
    """Return the reference made of training images, with its threshold.

    Args:
        pooled: Embeddings of at least `FEWEST` images from `pool`, float32.
        what: What kind of images they are, in one phrase.
    """
    kept = pooled.half()
    # One side stays float32, as a new image does when it is compared.
    similarity = pooled @ kept.float().T
    similarity.fill_diagonal_(-torch.inf)
    least = torch.quantile(similarity.amax(dim=1), SHARE).item()
    return TrainingReference(kept, round(least, _DIGITS), what)


def load_reference(folder: Path, card: Mapping[str, Any]) -> TrainingReference | None:
    """Return the reference of a bundle, None where it has none."""
    stated = card.get("trained_on") or {}
    if "least_similarity" not in stated:
        return None
    pooled = load_file(folder / REFERENCE)[_KEY]
    return TrainingReference(pooled, float(stated["least_similarity"]), _plain(stated["what"]))


def _plain(text: object) -> str:
    """Return a phrase without markup or control characters: bundles may come from anyone."""
    return "".join(letter for letter in str(text) if letter.isalnum() or letter in " ,.'-")[:80]
