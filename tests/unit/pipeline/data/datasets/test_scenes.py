from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.datasets.shapes.drawing import draw
from pipeline.data.datasets.shapes.scenes import COLOURS, Scene, make_scene, outline

SEED = 5
scenes = st.builds(make_scene, st.integers(0, 2**32), st.integers(0, 10**6))


@given(scenes)
def test_a_scene_holds_one_to_four_different_objects_in_reading_order(scene: Scene) -> None:
    quadrants = [item.quadrant for item in scene.objects]
    assert 1 <= len(quadrants) <= 4
    assert quadrants == sorted(set(quadrants))
    assert len({(item.shape, item.colour) for item in scene.objects}) == len(scene.objects)


@given(scenes)
def test_every_object_lies_inside_its_quadrant_of_the_central_square(scene: Scene) -> None:
    left, top, side = scene.central_square
    for item in scene.objects:
        row, column = divmod(item.quadrant, 2)
        for x, y in outline(scene, item):
            # A pixel of the crop may be rounded away on the outer sides.
            assert max(1, column * side / 2) <= x - left <= min(side - 1, (column + 1) * side / 2)
            assert max(1, row * side / 2) <= y - top <= min(side - 1, (row + 1) * side / 2)


@given(scenes)
def test_an_object_stands_on_one_cell_of_the_patch_grid(scene: Scene) -> None:
    for item in scene.objects:
        row, column = divmod(item.quadrant, 2)
        centre = (item.left + item.size / 2, item.top + item.size / 2)
        cells = [int(place * 7) for place in centre]
        assert cells == [1 if half == 0 else 5 for half in (column, row)]


@settings(max_examples=25)
@given(scenes)
def test_nothing_is_drawn_outside_the_central_square(scene: Scene) -> None:
    empty = replace(scene, objects=())
    rows, columns = np.nonzero((np.array(draw(scene)) != np.array(draw(empty))).any(axis=-1))
    left, top, side = scene.central_square
    assert rows.min() >= top
    assert columns.min() >= left
    assert rows.max() < top + side
    assert columns.max() < left + side


@settings(max_examples=25)
@given(scenes)
def test_objects_show_in_the_colour_that_is_named(scene: Scene) -> None:
    pixels = np.array(draw(scene)).astype(int)
    for item in scene.objects:
        corners = np.array(outline(scene, item))
        across, down = (corners.min(axis=0) + corners.max(axis=0)).astype(int) // 2
        distance = {name: np.abs(pixels[down, across] - rgb).sum() for name, rgb in COLOURS.items()}
        assert min(distance, key=distance.__getitem__) == item.colour


@given(scenes)
def test_the_background_contrasts_with_every_colour(scene: Scene) -> None:
    for shade in scene.backdrop:
        for rgb in COLOURS.values():
            assert np.linalg.norm(np.subtract(shade, rgb)) > 70


def test_image_sizes_are_as_varied_as_those_of_coco() -> None:
    sizes = [(s.width, s.height) for s in (make_scene(SEED, index) for index in range(300))]
    assert len(set(sizes)) > 60
    assert sum(width != height for width, height in sizes) > 0.75 * len(sizes)
    assert any(width < height for width, height in sizes)
    assert min(min(size) for size in sizes) >= 56
