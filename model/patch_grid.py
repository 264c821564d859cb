"""The grid of patches over an image, and what mattered in it; nothing here computes with a model.

Pages and drawings import this file, so it imports neither torch nor what brings it.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from model.errors import ModelError


@dataclass(frozen=True)
class View:
    """A rectangle in pixels of the upright image; it may reach beyond it where an encoder pads.

    Attributes:
        left: Left edge.
        top: Upper edge.
        width: Width; the patches of a row share it equally.
        height: Height; the patches of a column share it equally.
    """

    left: float
    top: float
    width: float
    height: float

    def covers(self, width: int, height: int) -> bool:
        """Return whether all of an image of this size is seen."""
        right, bottom = self.left + self.width, self.top + self.height
        return self.left <= 0 and self.top <= 0 and right >= width and bottom >= height


@dataclass(frozen=True)
class Explanation:
    """Where a model looked while it wrote a text.

    Attributes:
        words: The words of the text, split at blanks.
        maps: For each word, how much each patch mattered, in nats; float32 [word, patch], a square
            grid row by row.
        view: The part of the image that the grid divides.
    """

    words: list[str]
    maps: Float32[np.ndarray, "word patch"]
    view: View


def grid_side(patches: int) -> int:
    """Return the rows, and columns, of a square grid of `patches` patches.

    Raises:
        ModelError: The patches form no square.
    """
    side = math.isqrt(patches)
    if not patches or side * side != patches:
        raise ModelError(f"{patches} patches form no square grid, so they have no rows and columns")
    return side


def place(values: Float32[np.ndarray, "patch"]) -> str:
    """Return the row and column of the patch that mattered most in words, counted from one."""
    row, column = divmod(int(values.argmax()), grid_side(len(values)))
    return f"row {row + 1}, column {column + 1}"
