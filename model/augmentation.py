"""Images varied in training by their stored patch embeddings, without the encoder.

An encoder's grid of a mirrored image is nearly the mirrored grid, since encoders are trained on
mirrored images themselves; it is not exactly that. A dropped patch becomes the mean patch of the
training images, which says nothing about this image (`VisionPrefix.patch_mean`).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from model.augmentation_configs import AugmentationConfig
from model.errors import ModelError


def augmented(
    patches: Float[Tensor, "batch patch vision"],
    config: AugmentationConfig,
    mean: Float[Tensor, "vision"],
    generator: torch.Generator,
) -> Float[Tensor, "batch patch vision"]:
    """Return a batch's patch embeddings, some of them mirrored or dropped.

    Args:
        patches: Patch embeddings by rows of the grid, in any float type.
        config: The shares.
        mean: The mean patch of the training images.
        generator: Source of the draws, on the CPU whatever the device of the patches.

    Raises:
        ModelError: Images are to be mirrored and their grid is not square.
    """
    if config.none:
        return patches
    rows, count, width = patches.shape
    if config.mirrored:
        side = math.isqrt(count)
        if side * side != count:
            raise ModelError(f"{count} patches are not a square grid", "set augment.mirrored to 0")
        chosen = torch.rand(rows, generator=generator) < config.mirrored
        mirrored = patches.view(rows, side, side, width).flip(2).reshape(rows, count, width)
        patches = torch.where(chosen.to(patches.device)[:, None, None], mirrored, patches)
    if config.dropped:
        chosen = torch.rand(rows, count, generator=generator) < config.dropped
        lost = mean.to(patches.device, patches.dtype)
        patches = torch.where(chosen.to(patches.device)[:, :, None], lost, patches)
    return patches
