"""Curves over steps as a live chart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.pages.vega import COLOURS, Chart, chart, colours_of, legend, opacity, tips, zoom

_MOST_POINTS = 600  # of a curve drawn; a screen has no more columns


@dataclass(frozen=True)
class Curve:
    """One curve of a chart.

    Attributes:
        name: What it shows.
        xs: Steps.
        ys: Values, one for each step.
        run: The run it is of, "" where names have colours and not runs.
        colour: Of its run.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    run: str = ""
    colour: str = ""


def lines(
    title: str, curves: Sequence[Curve], x: str, y: str, palette: Sequence[str] = COLOURS
) -> Chart:
    """Return curves, coloured by run where they name one, and else by name, from a palette.

    With runs, the first name is drawn thin and pale, the others on top of it: a noisy training
    loss, and what was measured on held-out images. Of a curve of many points, the lowest and the
    highest of each stretch are drawn.
    """
    runs, names = (list(dict.fromkeys(getattr(c, key) for c in curves)) for key in ("run", "name"))
    of_runs = runs != [""]
    colour = colours_of("name", names, palette)
    if of_runs:
        colours = list({curve.run: curve.colour for curve in curves}.values())
        colour = colours_of("run", runs, colours) if len(runs) > 1 else {"value": colours[0]}
    keys = [key for key, some in (("run", runs), ("name", names)) if len(some) > 1]
    values = [
        {"run": curve.run, "name": curve.name, "x": step, "y": value}
        for curve in curves
        for step, value in _thinned(curve)
    ]
    encoding: dict[str, Any] = {
        "x": {"field": "x", "type": "quantitative", "title": x, "scale": {"zero": False}},
        "y": {"field": "y", "type": "quantitative", "title": y, "scale": {"zero": False}},
        "color": colour,
        **({"opacity": opacity(*keys)} if keys else {}),
    }
    if of_runs and len(names) > 1:
        for channel, ends in (("strokeWidth", (1, 2.5)), ("strokeOpacity", (0.5, 1))):
            scale = {"domain": names, "range": [ends[0], *(ends[1] for _ in names[1:])]}
            encoding[channel] = {"field": "name", "type": "ordinal", "scale": scale}
    line = {
        "mark": {"type": "line", "clip": True, "strokeWidth": 1.5},
        "params": [*(legend(key, key) for key in keys), zoom(["x", "y"])],
        "encoding": encoding,
    }
    fields = [("run", "run")] if len(runs) > 1 else []
    fields += [("name", "curve"), ("x", x), ("y", y)]
    whole = {"data": {"values": values}, "layer": [line], "height": 210}
    # The dots under the pointer are five times the rest, and a still image shows none.
    return chart(title, {**whole, "layer": [line, _dots(encoding, fields)]}, still=whole)


def _dots(encoding: Mapping[str, Any], fields: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the dot that is shown, with its values, where a curve is nearest to the pointer."""
    near = {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"}
    shown = {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0}
    return {
        "mark": {"type": "point", "filled": True, "size": 60, "clip": True},
        "params": [{"name": "near", "select": near}],
        "encoding": {
            **{key: encoding[key] for key in ("x", "y", "color")},
            "opacity": shown,
            "tooltip": tips(fields),
        },
    }


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    pairs = zip(curve.xs, curve.ys, strict=True)
    points = [(x, y) for x, y in pairs if math.isfinite(y)]  # JSON has no other numbers
    stretch = -(-2 * len(points) // _MOST_POINTS)
    if stretch <= 2:
        return points
    kept: list[tuple[float, float]] = []
    for first in range(0, len(points), stretch):
        some = points[first : first + stretch]
        ends = {min(some, key=lambda point: point[1]), max(some, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept
