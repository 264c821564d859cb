"""Charts in Vega-Lite: one specification gives a live chart and a still picture of it.

Every function returns a `Chart`. Its `uri` is an SVG for an `<img>`, so that nothing in a drawing
can affect the page around it; its `spec` is what `charts.js` draws in its place, with values under
the pointer, zoom and legends that can be clicked.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import vl_convert

WIDTH = 520  # pixels of a still picture; a live chart is as wide as its place
COLOURS = ("#2f6db3", "#d9822b", "#7a8594", "#3c9a5f", "#b0476a", "#7b5ea7", "#8c6d31", "#1aa0a8")
PLAIN = "#1aa0a8"  # of amounts that belong to no condition and no run
RUNS = ("#7b5ea7", "#3c9a5f", "#b0476a", "#a08a00", "#14808a", "#d65f9b")  # this run first
_ROW = 24  # pixels of one bar with its space
_MOST_POINTS = 600  # of a curve drawn; a screen has no more columns
_INK = "#4a525c"
_CONFIG: dict[str, Any] = {
    "background": None,
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": _INK,
        "titleColor": _INK,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "gridColor": "#e6e9ed",
        "domainColor": "#8a929c",
        "tickColor": "#8a929c",
    },
    "axisY": {"labelLimit": 190},
    "text": {"color": "#303740", "fontSize": 11},
    "legend": {
        "orient": "bottom",
        "title": None,
        "labelColor": _INK,
        "labelFontSize": 11,
        "labelLimit": 160,
        "columns": 4,
        "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
    },
}


@dataclass(frozen=True)
class Chart:
    """A drawing.

    Attributes:
        title: What it shows.
        uri: Its still picture, an SVG as a `data:` URI.
        spec: Its Vega-Lite specification.
    """

    title: str
    uri: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """One figure of a chart, with the bounds of its interval where it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: str = PLAIN


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


@cache
def chart_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script of some 900 kB, from the package."""
    return vl_convert.javascript_bundle().replace("</script", "<\\/script")


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
    values = [
        {
            "label": each.label,
            "value": each.value,
            "low": each.value if each.low is None else each.low,
            "high": each.value if each.high is None else each.high,
            "colour": each.colour,
            "shown": _shown(each.value),
            "interval": "" if each.low is None else f"{each.low:.3g} to {each.high:.3g}",
        }
        for each in estimates
    ]
    tips = [("label", "of"), ("shown", "value")]
    tips += [("interval", "95 % interval")] if any(row["interval"] for row in values) else []
    reach = [number for row in values for number in (row["low"], row["high"])]
    low, high = min(0.0, *reach), max(0.0, *reach)
    for layer in layers:
        layer["encoding"]["x"] |= {
            "title": unit or None,
            "scale": {"domain": [low, high + (high - low) * 0.14 or 1.0], "nice": False},
        }
    return _chart(
        title,
        {
            "data": {"values": values},
            "encoding": {"y": _names(), "tooltip": _tips(tips)},
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
    totals = [
        {"label": label, "value": sum(group.values()), "shown": f"{sum(group.values()):,.0f}"}
        for label, group in groups.items()
    ]
    most = max((total["value"] for total in totals), default=1.0)
    scale = {"domain": [0, most * 1.16 or 1.0], "nice": False}
    x = {"field": "value", "type": "quantitative", "title": None, "scale": scale}
    tips = [("label", "of"), ("part", "part"), ("shown", "value")]
    bar = {
        "mark": "bar",
        "params": [_legend("parts", "part")],
        "encoding": {
            "x": {**x, "stack": "zero"},
            "color": _colour("part", parts, COLOURS),
            "order": {"field": "place"},
            "opacity": _opacity("parts"),
            "tooltip": _tips(tips),
        },
        "transform": [{"calculate": f"indexof({json.dumps(parts)}, datum.part)", "as": "place"}],
    }
    text = {
        "data": {"values": totals},
        "mark": {"type": "text", "align": "left", "dx": 6},
        "encoding": {"x": x, "text": {"field": "shown"}},
    }
    layers = {"encoding": {"y": _names()}, "layer": [bar, text], "height": _ROW * len(groups)}
    return _chart(title, {"data": {"values": values}, **layers})


def lines(title: str, curves: Sequence[Curve], x: str, y: str) -> Chart:
    """Return curves, coloured by run where they name one, and else by name.

    With runs, the first name is drawn thin and pale, the others on top of it: a noisy training
    loss, and what was measured on held-out images. Of a curve of many points, the lowest and the
    highest of each stretch are drawn.
    """
    runs, names = (list(dict.fromkeys(getattr(c, key) for c in curves)) for key in ("run", "name"))
    of_runs = runs != [""]
    colour = _colour("name", names, COLOURS)
    if of_runs:
        colours = list({curve.run: curve.colour for curve in curves}.values())
        colour = _colour("run", runs, colours) if len(runs) > 1 else {"value": colours[0]}
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
        **({"opacity": _opacity(*keys)} if keys else {}),
    }
    if of_runs and len(names) > 1:
        for channel, ends in (("strokeWidth", (1, 2.5)), ("strokeOpacity", (0.5, 1))):
            scale = {"domain": names, "range": [ends[0], *(ends[1] for _ in names[1:])]}
            encoding[channel] = {"field": "name", "type": "ordinal", "scale": scale}
    line = {
        "mark": {"type": "line", "clip": True, "strokeWidth": 1.5},
        "params": [*(_legend(key, key) for key in keys), _zoom(["x", "y"])],
        "encoding": encoding,
    }
    tips = [("run", "run")] if len(runs) > 1 else []
    tips += [("name", "curve"), ("x", x), ("y", y)]
    near = {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"}
    shown = {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0}
    dots = {
        "mark": {"type": "point", "filled": True, "size": 60, "clip": True},
        "params": [{"name": "near", "select": near}],
        "encoding": {
            **{key: encoding[key] for key in ("x", "y", "color")},
            "opacity": shown,
            "tooltip": _tips(tips),
        },
    }
    whole = {"data": {"values": values}, "layer": [line], "height": 210}
    # The dots under the pointer are five times the rest, and a still picture shows none.
    return _chart(title, {**whole, "layer": [line, dots]}, still=whole)


def histogram(
    title: str, counts: Mapping[str, Mapping[float, int]], x: str, bins: int = 30
) -> Chart:
    """Return how often values occur, by name; whole numbers get one bar each where they fit.

    Args:
        title: What the chart shows.
        counts: How often each value occurs, by name.
        x: Unit of the values.
        bins: Bars, at most.
    """
    everything = [value for each in counts.values() for value in each]
    low, high = min(everything), max(everything)
    whole = high - low < bins and all(float(value).is_integer() for value in everything)
    first, step = (low - 0.5, 1.0) if whole else (low, (high - low) / bins or 1.0)
    amounts: dict[tuple[str, int], int] = {}
    for name, each in counts.items():
        for value, count in each.items():
            place = min(int((value - first) / step), bins - 1)
            amounts[name, place] = amounts.get((name, place), 0) + count
    values = [
        {
            "name": name,
            "from": first + place * step,
            "to": first + (place + 1) * step,
            "count": count,
            "of": f"{first + place * step:.4g} to {first + (place + 1) * step:.4g}"
            if not whole
            else f"{low + place:g}",
        }
        for (name, place), count in amounts.items()
    ]
    axis = {"tickMinStep": 1 if whole else 0, "grid": False}
    several = len(counts) > 1
    encoding: dict[str, Any] = {
        "x": {"field": "from", "bin": "binned", "type": "quantitative", "title": x, "axis": axis},
        "x2": {"field": "to"},
        "y": {"field": "count", "type": "quantitative", "stack": "zero", "title": None},
        "color": _colour("name", list(counts), COLOURS) if several else {"value": PLAIN},
        "tooltip": _tips([*([("name", "kind")] if several else []), ("of", x), ("count", "count")]),
    }
    params = [_zoom(["x"])]
    if several:
        encoding["opacity"] = _opacity("names")
        params.append(_legend("names", "name"))
    mark = {"type": "bar", "clip": True}
    spec = {"mark": mark, "params": params, "encoding": encoding, "height": 190}
    return _chart(title, {"data": {"values": values}, **spec})


def _chart(title: str, spec: Mapping[str, Any], still: Mapping[str, Any] | None = None) -> Chart:
    """Return a chart; its picture is drawn from another specification where there is one."""
    common = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": title,
        "width": WIDTH,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _CONFIG,
    }
    full = {**common, **spec}
    svg = vl_convert.vegalite_to_svg({**common, **(still or spec)}).encode()
    return Chart(title, f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}", full)


def _names() -> dict[str, Any]:
    axis = {"title": None, "ticks": False, "domain": False, "grid": False}
    return {"field": "label", "type": "nominal", "sort": None, "axis": axis}


def _tips(fields: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"field": field, "title": title} for field, title in fields]


def _colour(field: str, names: Sequence[str], palette: Sequence[str]) -> dict[str, Any]:
    colours = [palette[at % len(palette)] for at in range(len(names))]
    scale = {"domain": list(names), "range": colours}
    return {"field": field, "type": "nominal", "scale": scale}


def _legend(name: str, field: str) -> dict[str, Any]:
    """Return the choice of entries by clicks on a legend."""
    select = {"type": "point", "fields": [field], "toggle": "true"}
    return {"name": f"legend_{name}", "select": select, "bind": "legend"}


def _opacity(*names: str) -> dict[str, Any]:
    chosen = {"and": [{"param": f"legend_{name}"} for name in names]}
    return {"condition": {"test": chosen, "value": 1}, "value": 0.08}


def _zoom(sides: Sequence[str]) -> dict[str, Any]:
    """Return movement by dragging and zoom by Ctrl and wheel: a wheel alone scrolls the page."""
    select = {"type": "interval", "encodings": list(sides), "zoom": "wheel![event.ctrlKey]"}
    return {"name": "zoom", "select": select, "bind": "scales"}


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    points = list(zip(curve.xs, curve.ys, strict=True))
    stretch = -(-2 * len(points) // _MOST_POINTS)
    if stretch <= 2:
        return points
    kept: list[tuple[float, float]] = []
    for first in range(0, len(points), stretch):
        some = points[first : first + stretch]
        ends = {min(some, key=lambda point: point[1]), max(some, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def _shown(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
