"""Which patches of a grid cover the objects that people marked with boxes.

Boxes are in pixels of the image, patches in the part of it that the encoder sees, so boxes are
converted to it first; the model does not see what is outside.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.patch_grid import View

Box = tuple[float, float, float, float]  # left, top, width, height, as COCO has it
_LEAST = 0.5  # share of the shorter of box and patch that must overlap along each side


def patches_in_boxes(boxes: Sequence[Box], view: View, side: int) -> NDArray[np.bool_]:
    """Return which patches belong to at least one of the boxes, bool [patch], row by row.

    A patch belongs to a box where both share, along each side, at least half of the shorter of the
    two. So a visible box has at least one patch, however small or thin it is, but none that it
    barely overlaps.

    Args:
        boxes: In pixels of the image.
        view: The part of the image that the grid divides.
        side: Rows and columns of the grid.
    """
    covered = np.zeros((side, side), np.bool_)
    for left, top, width, height in boxes:
        across = _cells((left - view.left) / view.width, width / view.width, side)
        down = _cells((top - view.top) / view.height, height / view.height, side)
        covered |= down[:, None] & across[None, :]
    return covered.ravel()


def _cells(start: float, length: float, side: int) -> NDArray[np.bool_]:
    """Return which cells of the line from 0 to 1 belong to a segment of it."""
    first, last = max(start, 0.0) * side, min(start + length, 1.0) * side
    if last <= first:
        return np.zeros(side, np.bool_)
    edges = np.arange(side + 1)
    shared = np.minimum(edges[1:], last) - np.maximum(edges[:-1], first)
    # Rounding must not take a patch from a box that is half in one and half in the next.
    return shared >= _LEAST * min(1.0, last - first) * (1 - 1e-9)
