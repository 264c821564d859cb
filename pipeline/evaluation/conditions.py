"""What the model is shown: the real image, another one, or none; the weights stay the same."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.schemas import CONDITIONS
from pipeline.data.stored_images import Patches

MEAN_ROWS = 1024  # images whose mean stands for "no image"
BLIND = -1  # stands for that mean where the rows of other images stand


class Shown:
    """Patch embeddings of images under a condition.

    `shuffled` replaces each image by another one, by a fixed derangement of the test images.
    `blind` shows the mean patch embeddings of training images: the scale that the model knows, but
    no information about the image.

    Args:
        patches: Patch embeddings of all images.
        tested: Rows of the test images.
        trained: Rows of training images, for the mean.
        seed: Seed of the derangement.
    """

    def __init__(
        self,
        patches: Patches,
        tested: NDArray[np.int64],
        trained: NDArray[np.int64],
        seed: int,
    ) -> None:
        self.patches = patches
        ring = np.random.default_rng([seed, 11]).permutation(np.unique(tested))
        self._other = dict(zip(ring.tolist(), np.roll(ring, 1).tolist(), strict=True))
        hashes = patches.index["sha256"].take(ring).to_pylist()
        self._hashes = frozenset(hashes)
        mean = patches.gather(np.sort(trained)[:MEAN_ROWS]).astype(np.float32).mean(axis=0)
        self._mean = torch.from_numpy(mean)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The possible conditions: a single test image cannot be shuffled."""
        return tuple(name for name in CONDITIONS if name != "shuffled" or len(self._other) > 1)

    def knows(self, sha256: str) -> bool:
        """Return whether an image is among the test images that are shown."""
        return sha256 in self._hashes

    def image(self, row: int, condition: str) -> int:
        """Return the row of the image that is shown for an image, or `BLIND`."""
        if condition == "blind":
            return BLIND
        return self._other[row] if condition == "shuffled" else row

    def patches_of(self, images: Sequence[int]) -> Tensor:
        """Return float32 patches [image, patch, vision] of what `image` returned."""
        rows = np.asarray(images, np.int64)
        is_blind = rows == BLIND
        if is_blind.all():
            return self._mean.expand(len(rows), -1, -1)
        shown = torch.from_numpy(self.patches.gather(np.where(is_blind, rows.max(), rows))).float()
        shown[torch.from_numpy(is_blind)] = self._mean
        return shown

    def show(self, rows: Sequence[int] | NDArray[np.int64], condition: str) -> Tensor:
        """Return float32 patches [image, patch, vision] for rows under a condition."""
        return self.patches_of([self.image(int(row), condition) for row in rows])
