"""Charts in Vega-Lite: one specification gives a live chart and a still image of it.

Every function returns a `Chart`. Its `uri` is an SVG for an `<img>`, so that nothing in a drawing
can affect the page around it; its `spec` is what `charts.js` draws in its place, with values under
the pointer, zoom and legends that can be clicked.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.pages.vega import COLOURS, PLAIN, Chart, chart, colours_of, legend, opacity, tips, zoom

_ROW = 24  # pixels of one bar with its space
_BINS = 30  # bars of a histogram, at most


@dataclass(frozen=True)
class Estimate:
    """One figure of a chart, with the bounds of its interval where it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: str = PLAIN


def intervals(title: str, estimates: Sequence[Estimate]) -> Chart:
    """Return dots with their intervals, one below the other, from zero on."""
    layers = [
        _layer({"type": "rule", "strokeWidth": 5, "opacity": 0.35}, x2={"field": "high"}, x="low"),
        _layer({"type": "point", "filled": True, "size": 70, "opacity": 1}),
        _text(),
    ]
    return _rows(title, estimates, layers)


def bars(title: str, estimates: Sequence[Estimate], unit: str = "") -> Chart:
    """Return horizontal bars, each with its figure and, where there is one, its interval."""
    line = _layer({"type": "rule"}, x2={"field": "high"}, x="low")
    line["encoding"]["color"] = {"value": "#303740"}
    return _rows(title, estimates, [_layer({"type": "bar"}), line, _text()], unit)


def _layer(mark: Mapping[str, Any], x: str = "value", **encoding: Any) -> dict[str, Any]:
    colour = {"field": "colour", "type": "nominal", "scale": None}
    at = {"field": x, "type": "quantitative"}
    return {"mark": dict(mark), "encoding": {"x": at, "color": colour, **encoding}}


def _text() -> dict[str, Any]:
    layer = _layer({"type": "text", "align": "left", "dx": 8}, "high")
    layer["encoding"]["text"] = {"field": "shown"}
    del layer["encoding"]["color"]
    return layer


def _rows(
    title: str, estimates: Sequence[Estimate], layers: list[dict[str, Any]], unit: str = ""
) -> Chart:
    """Return one row for each figure, in the given order."""
    values: list[dict[str, Any]] = [
        {
            "label": estimate.label,
            "value": estimate.value,
            "low": estimate.value if estimate.low is None else estimate.low,
            "high": estimate.value if estimate.high is None else estimate.high,
            "colour": estimate.colour,
            "shown": _shown(estimate.value),
            "interval": ""
            if estimate.low is None
            else f"{estimate.low:.3g} to {estimate.high:.3g}",
        }
        for estimate in estimates
        if math.isfinite(estimate.value)  # JSON has no other numbers
    ]
    fields = [("label", "of"), ("shown", "value")]
    fields += [("interval", "95 % interval")] if any(row["interval"] for row in values) else []
    reach = [0.0, *(number for row in values for number in (row["low"], row["high"]))]
    low, high = min(reach), max(reach)
    for layer in layers:
        layer["encoding"]["x"] |= {
            "title": unit or None,
            "scale": {"domain": [low, high + (high - low) * 0.14 or 1.0], "nice": False},
        }
    return chart(
        title,
        {
            "data": {"values": values},
            "encoding": {"y": _names(), "tooltip": tips(fields)},
            "layer": layers,
            "height": _ROW * len(values),
        },
    )


def stacked(title: str, groups: Mapping[str, Mapping[str, float]]) -> Chart:
    """Return horizontal bars, each made of named parts in the same order."""
    parts = list(dict.fromkeys(name for group in groups.values() for name in group))
    values = [
        {"label": label, "part": part, "value": size, "shown": _shown(size)}
        for label, group in groups.items()
        for part, size in group.items()
    ]
    totals: list[dict[str, Any]] = [
        {"label": label, "value": sum(group.values()), "shown": f"{sum(group.values()):,.0f}"}
        for label, group in groups.items()
    ]
    most = max((total["value"] for total in totals), default=1.0)
    scale = {"domain": [0, most * 1.16 or 1.0], "nice": False}
    x = {"field": "value", "type": "quantitative", "title": None, "scale": scale}
    fields = [("label", "of"), ("part", "part"), ("shown", "value")]
    bar = {
        "mark": "bar",
        "params": [legend("parts", "part")],
        "encoding": {
            "x": {**x, "stack": "zero"},
            "color": colours_of("part", parts, COLOURS),
            "order": {"field": "place"},
            "opacity": opacity("parts"),
            "tooltip": tips(fields),
        },
        "transform": [{"calculate": f"indexof({json.dumps(parts)}, datum.part)", "as": "place"}],
    }
    text = {
        "data": {"values": totals},
        "mark": {"type": "text", "align": "left", "dx": 6},
        "encoding": {"x": x, "text": {"field": "shown"}},
    }
    layers = {"encoding": {"y": _names()}, "layer": [bar, text], "height": _ROW * len(groups)}
    return chart(title, {"data": {"values": values}, **layers})


def histogram(title: str, counts: Mapping[str, Mapping[float, int]], x: str) -> Chart:
    """Return how often values of a unit `x` occur, by name; whole numbers have a bar each."""
    everything = [value for each in counts.values() for value in each]
    low, high = min(everything), max(everything)
    whole = high - low < _BINS and all(float(value).is_integer() for value in everything)
    several = len(counts) > 1
    axis = {"tickMinStep": 1 if whole else 0, "grid": False}
    encoding: dict[str, Any] = {
        "x": {"field": "from", "bin": "binned", "type": "quantitative", "title": x, "axis": axis},
        "x2": {"field": "to"},
        "y": {"field": "count", "type": "quantitative", "stack": "zero", "title": None},
        "color": colours_of("name", list(counts), COLOURS) if several else {"value": PLAIN},
        "tooltip": tips([*([("name", "kind")] if several else []), ("of", x), ("count", "count")]),
    }
    params = [zoom(["x"])]
    if several:
        encoding["opacity"] = opacity("names")
        params.append(legend("names", "name"))
    mark = {"type": "bar", "clip": True}
    spec = {"mark": mark, "params": params, "encoding": encoding, "height": 190}
    first, step = (low - 0.5, 1.0) if whole else (low, (high - low) / _BINS or 1.0)
    return chart(title, {"data": {"values": _binned(counts, first, step)}, **spec})


def _binned(
    counts: Mapping[str, Mapping[float, int]], first: float, step: float
) -> list[dict[str, Any]]:
    """Return the bars of a histogram; of whole numbers, each has its number in the middle."""
    amounts: dict[tuple[str, int], int] = {}
    for name, occurrences in counts.items():
        for value, count in occurrences.items():
            place = min(int((value - first) / step), _BINS - 1)
            amounts[name, place] = amounts.get((name, place), 0) + count
    return [
        {
            "name": name,
            "from": first + place * step,
            "to": first + (place + 1) * step,
            "count": count,
            "of": f"{first + (place + 0.5) * step:.4g}"
            if step == 1.0
            else f"{first + place * step:.4g} to {first + (place + 1) * step:.4g}",
        }
        for (name, place), count in amounts.items()
    ]


def _names() -> dict[str, Any]:
    axis = {"title": None, "ticks": False, "domain": False, "grid": False}
    return {"field": "label", "type": "nominal", "sort": None, "axis": axis}


def _shown(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
