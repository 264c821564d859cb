"""The encoders of an assistant, one or two, whose patch embeddings are joined by position.

Two encoders beside each other see more than one: a self-supervised one (DINOv2) locates, a
contrastive one (SigLIP) names. Karamcheti et al. 2024, *Prismatic VLMs* (arXiv 2402.07865), and
Tong et al. 2024, *Cambrian-1* (arXiv 2406.16860), give both to one projector. The invariant: what
training reads from the feature store and what an assistant computes go through `join`, so that the
model sees the same bits.
"""

from collections.abc import Sequence
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16, Float32
from PIL import Image
from torch import Tensor, nn

from model.encoder import PatchEncoder
from model.encoder_table import SECOND
from model.shrink import Pixels, Shrink


class JoinedEncoders:
    """One or two encoders as the model was trained with.

    Args:
        folder: A bundle; its second encoder, if it has one, is in `second/`.
        layers: The layer of each encoder, counted from the end.
        patches: Positions of the grid to which two encoders are resampled.
        device: Where to compute.

    Attributes:
        first: The first encoder; which part of an image is seen is said by its transform.
        shrink: Prepares images; see `PatchEncoder.shrink`.

    Raises:
        ModelError: A folder holds no encoder.
    """

    def __init__(self, folder: Path, layers: Sequence[int], patches: int, device: str) -> None:
        folders = ("clip", SECOND)[: len(layers)]
        self._encoders = [
            PatchEncoder(folder / name, layer, device)
            for name, layer in zip(folders, layers, strict=True)
        ]
        self.first = self._encoders[0]
        self.shrink = Shrink(tuple(encoder.resize for encoder in self._encoders))
        self._patches, self._device = patches, device

    def encode(self, images: Sequence[Image.Image]) -> Float32[Tensor, "image patch vision"]:
        """Return the patch embeddings of RGB images, rounded as in the feature store.

        The model was trained on embeddings that went through float16.
        """
        return self.encode_shrunk([self.shrink(image) for image in images])

    def encode_shrunk(self, images: Sequence[Pixels]) -> Float32[Tensor, "image patch vision"]:
        """Return what `encode` gives, of images from `shrink`."""
        made = [
            encoder.encode_shrunk(np.stack(pixels), len(images)).patches.half()
            for encoder, pixels in zip(self._encoders, zip(*images, strict=True), strict=True)
        ]
        return (made[0] if len(made) == 1 else join(made, self._patches)).float().to(self._device)


def join(
    parts: Sequence[Float16[Tensor, "image _ _"]], patches: int
) -> Float16[Tensor, "image {patches} vision"]:
    """Return the embeddings of several encoders concatenated by position, on the CPU.

    Each encoder's grid is resampled to the same square grid: a larger one by averaging what falls
    into a cell (torch's adaptive average pooling), a smaller one by bilinear interpolation between
    the middles of cells; one of that size is left as it is. It is always computed on the CPU, where
    neither the device nor the other images change a bit.

    Args:
        parts: The embeddings of each encoder, [image, patch, width]; the number of patches is a
            square, which the stage `features` has checked.
        patches: Positions of the grid, a square number, which the recipe has checked.
    """
    side = isqrt(patches)
    return torch.cat([_resampled(part.cpu(), side) for part in parts], dim=2)


def _resampled(
    part: Float16[Tensor, "image _ width"], side: int
) -> Float16[Tensor, "image _ width"]:
    images, patches, width = part.shape
    given = isqrt(patches)
    if given == side:
        return part
    # As a view with the width last: 48 images of 37 by 37 take 18 ms on two cores, with the width
    # first and in float32 400. The kernels of float16 add in float32 and round once.
    grid = part.contiguous().view(images, given, given, width).permute(0, 3, 1, 2)
    if given > side:
        made = nn.functional.adaptive_avg_pool2d(grid, side)
    else:
        made = nn.functional.interpolate(grid, (side, side), mode="bilinear", align_corners=False)
    return made.permute(0, 2, 3, 1).reshape(images, side * side, width)
