"""Images as the encoders take them, made without their weights."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Pixels = tuple[UInt8[np.ndarray, "height width 3"], ...]  # one image, for each encoder


class Shrink(NamedTuple):
    """Resizes and crops images as each encoder takes them.

    It needs no weights and can be pickled, so that another process can prepare images.

    Attributes:
        steps: What each encoder does, from Pillow image to Pillow image.
    """

    steps: tuple[Callable[[Image.Image], Image.Image], ...]

    def __call__(self, image: Image.Image) -> Pixels:
        """Return an RGB image as each encoder takes it; safe for use by several threads."""
        return tuple(np.asarray(step(image)) for step in self.steps)
