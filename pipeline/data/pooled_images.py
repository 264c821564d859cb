"""One embedding for each image: the mean over its patches, as assistants compare images."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from model.training_reference import pool
from pipeline.data.stored_images import open_first, open_patches
from pipeline.engine.stage import InputArtifact

_AT_ONCE = 128  # images whose patches are in memory together


def pooled_images(
    features: InputArtifact, hashes: Sequence[str]
) -> Float32[Tensor, "image vision"]:
    """Return `pool` of images' patches, in the order of their hashes.

    Of two encoders' joined embeddings, those of the first are taken.

    Args:
        features: The artifact.
        hashes: SHA-256 of at least one image in it.

    Raises:
        ShardError: A file is missing, damaged or does not fit the others.
    """
    patches, width = open_patches(features), open_first(features).shape[1]
    rows = patches.rows_of(hashes)
    parts = [
        pool(torch.from_numpy(patches.gather(rows[start : start + _AT_ONCE])[..., :width]).float())
        for start in range(0, len(rows), _AT_ONCE)
    ]
    return torch.cat(parts)
