"""From boxes in pixels to patches of the grid that an encoder sees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.patch_grid import View
from pipeline.data.datasets.shapes.scenes import make_scene, outline
from pipeline.evaluation.boxes import patches_in_boxes

SIDES = st.integers(1, 16)
NUMBERS = st.floats(-50, 400, allow_nan=False, width=32)
LENGTHS = st.floats(0.125, 400, allow_nan=False, width=32)
BOXES = st.tuples(NUMBERS, NUMBERS, LENGTHS, LENGTHS)
VIEWS = st.builds(
    View,
    st.floats(-50, 100, width=32),
    st.floats(-50, 100, width=32),
    st.floats(20, 300, width=32),
    st.floats(20, 300, width=32),
)


def overlap(box: tuple[float, float, float, float], view: View, side: int) -> np.ndarray:
    """Return the share of each patch that a box covers, [row, column]."""
    share = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            left = view.left + view.width * column / side
            top = view.top + view.height * row / side
            wide, tall = view.width / side, view.height / side
            x = min(left + wide, box[0] + box[2]) - max(left, box[0])
            y = min(top + tall, box[1] + box[3]) - max(top, box[1])
            share[row, column] = max(x, 0) * max(y, 0) / (wide * tall)
    return share


@given(BOXES, VIEWS, SIDES)
def test_a_box_that_is_seen_has_the_patch_it_covers_most_and_none_it_does_not_touch(
    box: tuple[float, float, float, float], view: View, side: int
) -> None:
    found = patches_in_boxes([box], view, side).reshape(side, side)
    share = overlap(box, view, side)
    assert not found[share == 0].any()
    if share.max() > 1e-6:
        assert found.any()
        assert found[share > 0.99].all()
        assert share[found].max() == pytest.approx(share.max(), rel=1e-3)


@given(BOXES, VIEWS, SIDES)
def test_a_mirrored_box_has_the_mirrored_patches(
    box: tuple[float, float, float, float], view: View, side: int
) -> None:
    left, top, width, height = box
    other = (2 * view.left + view.width - left - width, top, width, height)
    found = patches_in_boxes([box], view, side).reshape(side, side)
    mirrored = patches_in_boxes([other], view, side).reshape(side, side)
    # A box that ends exactly halfway may fall to either side by rounding.
    assert (found != mirrored[:, ::-1]).any(axis=0).sum() <= 2


@given(st.lists(BOXES, max_size=4), VIEWS, SIDES)
def test_several_boxes_have_the_patches_of_each(
    boxes: list[tuple[float, float, float, float]], view: View, side: int
) -> None:
    each = [patches_in_boxes([box], view, side) for box in boxes]
    together = np.any(each, axis=0) if each else np.zeros(side * side, bool)
    assert (patches_in_boxes(boxes, view, side) == together).all()


@given(VIEWS, SIDES)
def test_the_whole_view_has_all_patches(view: View, side: int) -> None:
    assert patches_in_boxes([(view.left, view.top, view.width, view.height)], view, side).all()


def test_what_the_crop_cuts_off_is_not_there() -> None:
    view = View(50, 0, 100, 100)  # the middle of 200 by 100 pixels
    assert not patches_in_boxes([(0, 0, 50, 100)], view, 7).any()
    half = patches_in_boxes([(0, 0, 100, 100)], view, 4).reshape(4, 4)
    assert half.tolist() == [[True, True, False, False]] * 4


def test_every_shape_of_the_demo_has_the_one_patch_it_was_drawn_in() -> None:
    for index in range(60):
        scene = make_scene(0, index)
        x0, y0, side = scene.central_square
        for item in scene.objects:
            xs, ys = zip(*outline(scene, item), strict=True)
            box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
            (patch,) = np.flatnonzero(patches_in_boxes([box], View(x0, y0, side, side), 7))
            row, column = divmod(item.quadrant, 2)
            assert divmod(int(patch), 7) == (1 + 4 * row, 1 + 4 * column)
