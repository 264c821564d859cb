"""The scenes of the preset `demo`: coloured shapes in four quadrants.

A scene is pure data and a pure function of (seed, index), so image number i is the same
whatever the number of images. Invariant: every object lies inside its own quadrant of the
central square of the image, which is what remains after CLIP's centre crop.
"""

import math
import random
from dataclasses import dataclass

Colour = tuple[int, int, int]
Point = tuple[float, float]

SHAPES = ("circle", "square", "triangle", "cross")
# Light tints on a dark backdrop: a shape then has nearly the same brightness pattern in every
# colour. Shape explains 36 % of the variance of the middle patch's embedding. With strong colours
# on a dark backdrop it was 3 %, on grey 0.6 %, and the model learned colours but no shapes.
COLOURS: dict[str, Colour] = {
    "red": (255, 95, 95),
    "green": (95, 245, 110),
    "blue": (105, 135, 255),
    "yellow": (255, 245, 80),
    "purple": (220, 100, 255),
    "orange": (255, 170, 70),
    "cyan": (90, 240, 250),
    "white": (250, 250, 250),
}
# Reading order; the index of a quadrant is 2 * row + column. A name is one word, which becomes one
# token. With two words ("top left"), look-ups by place were learned last: on seed 6 half of those
# answers were right, and 84 % of all answers after 5,000 steps, against 96 % with one word.
QUADRANTS = ("northwest", "northeast", "southwest", "southeast")

# As parts of the central square's side. An object is about one seventh of it wide and stands near
# the middle of one cell of the 7x7 grid, so that one patch of the tiny CLIP sees most of a shape.
# Larger shapes were tried: within minutes the model then learned colours, but hardly any shape.
CENTRES = (1.5 / 7, 5.5 / 7)
JITTER = 0.008
MOST_OBJECTS = 2  # with more, a minute of training learns to count but not to look objects up
SIZES = (0.15, 0.17)

_REPEATED_SHAPE_SHARE = 0.1
_PORTRAIT_SHARE = 0.3
# COCO is mostly 4:3 and 3:2, with some squares and a few panoramas.
_ASPECTS, _ASPECT_WEIGHTS = (4 / 3, 3 / 2, 1.0, 1.15, 2.3), (52, 24, 14, 8, 2)
_SHORTEST_SIDE = (112, 140)


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One coloured shape.

    Attributes:
        shape: One of `SHAPES`.
        colour: A name in `COLOURS`.
        quadrant: Index into `QUADRANTS`.
        left: Left edge of the box around it, as a part of the central square's side.
        top: Top edge, likewise.
        size: Side of that box, likewise.
        tilt: Rotation in radians.
        paint: The RGB colour in which it is drawn, near the colour that its name stands for.
    """

    shape: str
    colour: str
    quadrant: int
    left: float
    top: float
    size: float
    tilt: float
    paint: Colour

    @property
    def place(self) -> str:
        """The quadrant in a word, such as "northwest"."""
        return QUADRANTS[self.quadrant]


@dataclass(frozen=True, slots=True)
class Scene:
    """One image before it is drawn.

    Attributes:
        seed: The seed of all scenes.
        index: The number of the scene under that seed.
        width: Width of the image in pixels.
        height: Height in pixels.
        backdrop: The two RGB colours between which the background fades.
        slope: Direction of that fade in radians.
        objects: One or two objects in reading order, no two alike in shape and colour.
    """

    seed: int
    index: int
    width: int
    height: int
    backdrop: tuple[Colour, Colour]
    slope: float
    objects: tuple[SceneObject, ...]

    @property
    def central_square(self) -> tuple[float, float, float]:
        """Left edge, top edge and side of the central square, in pixels."""
        side = float(min(self.width, self.height))
        return (self.width - side) / 2, (self.height - side) / 2, side


def generator(seed: int, index: int, purpose: str) -> random.Random:
    """A random generator of its own for one purpose about one scene.

    It is seeded with a text, which Python hashes with SHA-512: the same in every process.
    """
    return random.Random(f"{seed}/{index}/{purpose}")  # noqa: S311 - images, not secrets


def make_scene(seed: int, index: int) -> Scene:
    """Scene number `index` for this seed.

    The number of objects, their quadrants, shapes and colours are uniform, so that priors do not
    answer questions about a scene.
    """
    rng = generator(seed, index, "scene")
    width, height = _image_size(rng)
    grey = rng.randint(16, 44)
    backdrop = (_near((grey, grey, grey), 10, rng), _near((grey, grey, grey), 10, rng))
    slope = rng.uniform(0, 2 * math.pi)
    quadrants = sorted(rng.sample(range(len(QUADRANTS)), rng.randint(1, MOST_OBJECTS)))
    looks = zip(_looks(len(quadrants), rng), quadrants, strict=True)
    objects = tuple(_place(shape, colour, quadrant, rng) for (shape, colour), quadrant in looks)
    return Scene(seed, index, width, height, backdrop, slope, objects)


def outline(scene: Scene, item: SceneObject) -> list[Point]:
    """The corners of an object's polygon, in pixels of the image.

    The tilted shape is scaled so that its longer extent fills the object's box, and centred there.
    """
    x0, y0, side = scene.central_square
    cos, sin = math.cos(item.tilt), math.sin(item.tilt)
    turned = [(x * cos - y * sin, x * sin + y * cos) for x, y in _CORNERS[item.shape]]
    xs, ys = [x for x, _ in turned], [y for _, y in turned]
    scale = item.size * side / max(max(xs) - min(xs), max(ys) - min(ys))
    across = x0 + (item.left + item.size / 2) * side - scale * (max(xs) + min(xs)) / 2
    down = y0 + (item.top + item.size / 2) * side - scale * (max(ys) + min(ys)) / 2
    return [(across + scale * x, down + scale * y) for x, y in turned]


def _image_size(rng: random.Random) -> tuple[int, int]:
    shortest = rng.randint(*_SHORTEST_SIDE)
    longest = round(shortest * rng.choices(_ASPECTS, _ASPECT_WEIGHTS)[0])
    return (shortest, longest) if rng.random() < _PORTRAIT_SHARE else (longest, shortest)


def _near(colour: Colour, spread: int, rng: random.Random) -> Colour:
    r, g, b = (min(255, max(0, part + rng.randint(-spread, spread))) for part in colour)
    return r, g, b


def _looks(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Shape and colour of each object: shapes differ mostly, the pairs always."""
    if rng.random() < _REPEATED_SHAPE_SHARE:
        pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
        return rng.sample(pairs, count)
    return [(shape, rng.choice(list(COLOURS))) for shape in rng.sample(SHAPES, count)]


def _place(shape: str, colour: str, quadrant: int, rng: random.Random) -> SceneObject:
    size = rng.uniform(*SIZES)
    row, column = divmod(quadrant, 2)
    left, top = (CENTRES[half] + rng.uniform(-JITTER, JITTER) - size / 2 for half in (column, row))
    tilt = math.radians(rng.uniform(-4, 4))
    return SceneObject(
        shape, colour, quadrant, left, top, size, tilt, _near(COLOURS[colour], 8, rng)
    )


def _ring(radius: float, turns: int) -> list[Point]:
    """Corners around a centre, the first one on top."""
    angles = [2 * math.pi * k / turns for k in range(turns)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for angle in angles]


def _plus(arm: float) -> list[Point]:
    """A cross whose arms are 2 * arm wide and reach to 1."""
    top = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    right = [(-y, x) for x, y in top]
    bottom = [(-x, -y) for x, y in top]
    left = [(-x, -y) for x, y in right]
    return top + right + bottom + left


_CORNERS: dict[str, list[Point]] = {
    "circle": _ring(1.0, 32),
    "square": [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
    "triangle": _ring(1.0, 3),
    "cross": _plus(0.34),
}
