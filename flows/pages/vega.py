"""Parts of Vega-Lite specifications, and a chart from one: its live form and a still image.

The libraries that draw live charts come out of the package vl-convert, which also draws the still
images, so nothing is fetched and no copy of them is kept here.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import vl_convert

WIDTH = 520  # pixels of a still image; a live chart is as wide as its place
COLOURS = ("#2f6db3", "#d9822b", "#7a8594", "#3c9a5f", "#b0476a", "#7b5ea7", "#8c6d31", "#1aa0a8")
PLAIN = "#1aa0a8"  # of amounts that belong to no condition and no run
RUNS = ("#7b5ea7", "#3c9a5f", "#b0476a", "#a08a00", "#14808a", "#d65f9b")  # this run first
# Of experts, whose curves cross all the time: found by search, so that each stands out from the
# page and from the seven others, in light and dark and for people who do not see green.
# tests/unit/flows/test_chart_colours.py has the distances.
EXPERTS = ("#b28d3d", "#4376fc", "#7d2a6f", "#774d0b", "#bb6fd0", "#1f8d07", "#095ca7", "#fd4690")
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
        uri: Its still image, an SVG as a `data:` URI.
        spec: Its Vega-Lite specification.
    """

    title: str
    uri: str
    spec: Mapping[str, Any]


@cache
def chart_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script of some 900 kB, from the package."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
        "</script", "<\\/script"
    )


def chart(title: str, spec: Mapping[str, Any], still: Mapping[str, Any] | None = None) -> Chart:
    """Return a chart; its image is drawn from another specification where there is one."""
    common = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": title,
        "width": WIDTH,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _CONFIG,
    }
    full = {**common, **spec}
    svg = _renumbered(vl_convert.vegalite_to_svg({**common, **(still or spec)}))
    encoded = base64.b64encode(svg.encode()).decode()
    return Chart(title, f"data:image/svg+xml;base64,{encoded}", full)


def _renumbered(svg: str) -> str:
    """Return a drawing whose ids start at 0: Vega counts on from one drawing to the next."""
    ids: dict[str, int] = {}
    pattern = re.compile(r'(id="|url\(#)clip(\d+)')
    return pattern.sub(lambda m: f"{m[1]}clip{ids.setdefault(m[2], len(ids))}", svg)


def tips(fields: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return what is shown under the pointer: fields, each with its title."""
    return [{"field": field, "title": title} for field, title in fields]


def colours_of(field: str, names: Sequence[str], palette: Sequence[str]) -> dict[str, Any]:
    """Return the colours of names, always the same one for the same place in the list."""
    colours = [palette[at % len(palette)] for at in range(len(names))]
    scale = {"domain": list(names), "range": colours}
    return {"field": field, "type": "nominal", "scale": scale}


def legend(name: str, field: str) -> dict[str, Any]:
    """Return the choice of entries by clicks on a legend."""
    select = {"type": "point", "fields": [field], "toggle": "true"}
    return {"name": f"legend_{name}", "select": select, "bind": "legend"}


def opacity(*names: str) -> dict[str, Any]:
    """Return the opacity that fades what legends deselect."""
    chosen = {"and": [{"param": f"legend_{name}"} for name in names]}
    return {"condition": {"test": chosen, "value": 1}, "value": 0.08}


def zoom(sides: Sequence[str]) -> dict[str, Any]:
    """Return movement by dragging and zoom by Ctrl and wheel: a wheel alone scrolls the page."""
    select = {"type": "interval", "encodings": list(sides), "zoom": "wheel![event.ctrlKey]"}
    return {"name": "zoom", "select": select, "bind": "scales"}
