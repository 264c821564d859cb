"""Charts as inline SVG, drawn by matplotlib: sharp at any size, without scripts or fonts.

Every function returns a `Chart` whose `uri` goes into an `<img>`, so that nothing in a drawing can
affect the page around it. Text stays text, which keeps a chart at some 10 kB.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH = 5.4  # inches: at 11 points, text is readable on a phone and not too large on a desktop
COLOURS = ("#2f6db3", "#d9822b", "#7a8594", "#3c9a5f", "#b0476a", "#7b5ea7", "#8c6d31", "#1aa0a8")
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "phivision",
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a929c",
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "axes.axisbelow": True,
    "xtick.color": "#4a525c",
    "ytick.color": "#4a525c",
    "text.parse_math": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Chart:
    """A drawing.

    Attributes:
        title: What it shows.
        uri: The SVG as a `data:` URI.
    """

    title: str
    uri: str


@dataclass(frozen=True)
class Estimate:
    """One figure of a chart, with the bounds of its interval where it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: str = COLOURS[0]


def intervals(title: str, estimates: Sequence[Estimate]) -> Chart:
    """Return dots with their intervals, one below the other, from zero on."""

    def draw(axes: Axes) -> None:
        for at, each in enumerate(reversed(estimates)):
            low = each.value if each.low is None else each.low
            high = each.value if each.high is None else each.high
            axes.hlines(at, low, high, color=each.colour, linewidth=5, alpha=0.35)
            axes.plot([each.value], [at], "o", color=each.colour, markersize=7)
            axes.annotate(
                f"{each.value:.3g}", (high, at), (8, 0), textcoords="offset points", va="center"
            )
        _rows(axes, [each.label for each in reversed(estimates)])
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.margins(x=0.12)

    return _chart(title, draw, 0.6 + 0.33 * len(estimates))


def bars(title: str, estimates: Sequence[Estimate], unit: str = "") -> Chart:
    """Return horizontal bars, each with its figure and, where there is one, its interval."""

    def draw(axes: Axes) -> None:
        turned = list(reversed(estimates))
        axes.barh(range(len(turned)), [e.value for e in turned], color=[e.colour for e in turned])
        for at, each in enumerate(turned):
            end = each.value if each.high is None else each.high
            if each.low is not None:
                axes.hlines(at, each.low, end, color="#303740", linewidth=1.2)
            axes.annotate(
                f"{each.value:,.3g}" if each.value < 1000 else f"{each.value:,.0f}",
                (end, at),
                (5, 0),
                textcoords="offset points",
                va="center",
            )
        _rows(axes, [each.label for each in turned])
        axes.margins(x=0.16)
        axes.set_xlabel(unit)

    return _chart(title, draw, 0.6 + 0.3 * len(estimates))


def stacked(title: str, groups: Mapping[str, Mapping[str, float]]) -> Chart:
    """Return horizontal bars, each made of named parts in the same order."""
    parts = list(dict.fromkeys(name for group in groups.values() for name in group))

    def draw(axes: Axes) -> None:
        labels = list(groups)[::-1]
        starts = [0.0] * len(labels)
        for part, colour in zip(parts, _cycle(len(parts)), strict=True):
            sizes = [groups[label].get(part, 0) for label in labels]
            axes.barh(range(len(labels)), sizes, left=starts, color=colour, label=part)
            starts = [start + size for start, size in zip(starts, sizes, strict=True)]
        for at, total in enumerate(starts):
            axes.annotate(
                f"{total:,.0f}", (total, at), (5, 0), textcoords="offset points", va="center"
            )
        _rows(axes, labels)
        axes.margins(x=0.16)
        _legend(axes, len(parts))

    return _chart(title, draw, 1.0 + 0.33 * len(groups))


def lines(
    title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str
) -> Chart:
    """Return curves by name, each of x and y values."""

    def draw(axes: Axes) -> None:
        for (label, (xs, ys)), colour in zip(series.items(), _cycle(len(series)), strict=True):
            marker = "o" if len(xs) < 30 else ""
            axes.plot(xs, ys, marker=marker, markersize=3, color=colour, label=label)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _legend(axes, len(series))

    return _chart(title, draw, 2.9)


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
    edges: Any = [low - 0.5 + step for step in range(round(high - low) + 2)] if whole else bins

    def draw(axes: Axes) -> None:
        axes.hist(
            [list(each) for each in counts.values()],
            weights=[list(each.values()) for each in counts.values()],
            bins=edges,
            stacked=True,
            color=_cycle(len(counts)),
            label=list(counts),
            rwidth=0.92,
        )
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(integer=whole))
        if len(counts) > 1:
            _legend(axes, len(counts))

    return _chart(title, draw, 2.6)


def _chart(title: str, draw: Any, height: float) -> Chart:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_subplot()
        draw(axes)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return Chart(title, f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}")


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _legend(axes: Axes, entries: int) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=min(entries, 4), fontsize=9)


def _cycle(count: int) -> list[str]:
    return [COLOURS[at % len(COLOURS)] for at in range(count)]


def _short(label: str) -> str:
    return label if len(label) <= 28 else f"{label[:27]}…"
