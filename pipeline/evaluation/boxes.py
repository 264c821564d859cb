"""Which patches of a grid hold what people marked with boxes.

Boxes are in pixels of the image, patches in the part of it that the encoder sees, so boxes are
moved there first; what lies outside is not there for the model.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.view import View

Box = tuple[float, float, float, float]  # left, top, width, height, as COCO has it
_LEAST = 0.5  # of the shorter of box and patch that they must share along each side


def patches_in_boxes(boxes: Sequence[Box], view: View, side: int) -> NDArray[np.bool_]:
    """Return which patches belong to any of some boxes, bool [patch], row by row.

    A patch belongs to a box where both share, along each side, at least half of the shorter of the
    two. So a box that is seen has at least one patch, however small or thin it is, and one that
    reaches a little into a patch does not have it.

    Args:
        boxes: In pixels of the image.
        view: The part of the image that the grid divides.
        side: Rows and columns of the grid.
    """
    found = np.zeros((side, side), np.bool_)
    for left, top, width, height in boxes:
        across = _cells((left - view.left) / view.width, width / view.width, side)
        down = _cells((top - view.top) / view.height, height / view.height, side)
        found |= down[:, None] & across[None, :]
    return found.ravel()


def _cells(start: float, length: float, side: int) -> NDArray[np.bool_]:
    """Return which cells of a line belong to a stretch of it; the line is from 0 to 1."""
    first, last = max(start, 0.0) * side, min(start + length, 1.0) * side
    if last <= first:
        return np.zeros(side, np.bool_)
    edges = np.arange(side + 1)
    shared = np.minimum(edges[1:], last) - np.maximum(edges[:-1], first)
    # Rounding must not take a patch from a box that is shared by two in halves.
    return shared >= _LEAST * min(1.0, last - first) * (1 - 1e-9)
