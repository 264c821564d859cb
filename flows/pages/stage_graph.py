"""The DAG of a run as a drawing: what each stage was made of, what it took, and how large it is.

An SVG inside the page, so that its text follows the page's colours, in one column of at most two
stages beside each other, so that a phone shows it at nearly full size.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flows.stage_arrows import arrows
from storage.store.manifest import Manifest

BOX, HEIGHT = 172, 64  # pixels of a stage
BESIDE, BELOW = 16, 30  # pixels between two
COLUMNS = 2
MARGIN = 4
WIDTH = COLUMNS * BOX + (COLUMNS - 1) * BESIDE + 2 * MARGIN


class Box(NamedTuple):
    """A stage in the drawing; places are pixels of its upper left corner."""

    stage: str
    status: str
    figures: str
    digest: str
    x: float
    y: float


def stage_graph(manifests: Mapping[str, Manifest], made: Sequence[str]) -> dict[str, Any] | None:
    """Return what the template draws: size, boxes, and the path of each arrow; None without stages.

    Args:
        manifests: The artifacts of a run, in the order of the DAG.
        made: Stages that the run itself made; the others were cached.
    """
    if not manifests:
        return None
    inputs = {
        stage: [name for name in manifest.payload["inputs"] if name in manifests]
        for stage, manifest in manifests.items()
    }
    boxes = {}
    for row, stages in enumerate(_rows(inputs)):
        left = (WIDTH - len(stages) * BOX - (len(stages) - 1) * BESIDE) / 2
        for column, stage in enumerate(stages):
            place = (left + column * (BOX + BESIDE), MARGIN + row * (HEIGHT + BELOW))
            boxes[stage] = _box(manifests[stage], "made" if stage in made else "cached", *place)
    return {
        "width": WIDTH,
        "height": max(box.y for box in boxes.values()) + HEIGHT + MARGIN,
        "box": (BOX, HEIGHT),
        "boxes": list(boxes.values()),
        "arrows": [_path(boxes[source], boxes[target]) for source, target in arrows(inputs)],
    }


def _rows(inputs: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the stages row by row: each below all that it was made of, where there is room."""
    rows: list[list[str]] = []
    at: dict[str, int] = {}
    for stage, names in inputs.items():
        row = max((at[name] + 1 for name in names), default=0)
        while row < len(rows) and len(rows[row]) == COLUMNS:
            row += 1
        if row == len(rows):
            rows.append([])
        rows[row].append(stage)
        at[stage] = row
    return rows


def _box(manifest: Manifest, status: str, x: float, y: float) -> Box:
    size = sum(record.bytes for record in manifest.files) / 1e6
    figures = f"{manifest.seconds:,.1f} s · {size:,.1f} MB"
    return Box(manifest.stage, status, figures, manifest.digest[:12], x, y)


def _path(source: Box, target: Box) -> str:
    """Return an arrow from the lower side of a box to the upper side of another, as SVG's path."""
    x, y = source.x + BOX / 2, source.y + HEIGHT
    to_x, to_y = target.x + BOX / 2, target.y - 2
    return f"M{x:g} {y:g}C{x:g} {y + BELOW / 2:g} {to_x:g} {to_y - BELOW / 2:g} {to_x:g} {to_y:g}"
