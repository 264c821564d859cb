"""The colours of experts are told apart on light and dark pages, and without red and green.

Distances are those of OKLab (Ottosson 2020), where 0.02 is a just noticeable difference; contrast
is WCAG 2.2's, which asks for 3 of graphical objects. Dark pages invert charts and turn their hues
back (page.css). Sight without the green cones is simulated as by Machado et al. 2009.
"""

import math
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flows.pages.report_training import training_curves
from flows.pages.vega import EXPERTS

Colour = NDArray[np.float64]  # red, green and blue from 0 to 1, as in CSS

CSS = (Path(__file__).resolve().parents[3] / "flows/pages/page.css").read_text()
# The Filter Effects specification's hue-rotate(180deg).
HALF_TURN = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])
NO_GREEN = np.array(
    [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
)  # of linear light
TO_CONES = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.63]])
TO_LAB = np.array([[0.2105, 0.7936, -0.0041], [1.978, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])


def of(text: str) -> Colour:
    if len(text) == 4:
        text = "#" + "".join(2 * digit for digit in text[1:])
    return np.array([int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)])


def light_of(colour: Colour) -> Colour:
    """Return the linear light of a colour."""
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def on_dark(colour: Colour) -> Colour:
    return np.clip(HALF_TURN @ (1 - colour), 0, 1)


def contrast(one: Colour, other: Colour) -> float:
    shares = np.array([0.2126, 0.7152, 0.0722])
    dark, bright = sorted(float(shares @ light_of(each)) for each in (one, other))
    return (bright + 0.05) / (dark + 0.05)


def nearest(colours: list[Colour], seen: Colour) -> float:
    """Return the smallest distance of two colours, through a filter of linear light."""
    lights = [np.clip(seen @ light_of(colour), 0, 1) for colour in colours]
    points = [TO_LAB @ np.cbrt(TO_CONES @ light) for light in lights]
    return min(math.dist(one, other) for one, other in combinations(points, 2))


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest) -> tuple[Colour, list[Colour]]:
    """The paper of a page, and the colours as they are on it."""
    papers = re.findall(r"--paper: (#\w+)", CSS)
    colours = [of(text) for text in EXPERTS]
    if request.param == "light":
        return of(papers[0]), colours
    assert "filter: invert(1) hue-rotate(180deg)" in CSS
    return of(papers[1]), [on_dark(colour) for colour in colours]


def test_each_stands_out_from_the_page(page: tuple[Colour, list[Colour]]) -> None:
    paper, colours = page
    assert min(contrast(colour, paper) for colour in colours) > 3.0


def test_each_differs_from_every_other(page: tuple[Colour, list[Colour]]) -> None:
    assert nearest(page[1], np.eye(3)) > 0.12
    assert nearest(page[1], NO_GREEN) > 0.08


def test_the_report_draws_experts_in_these_colours() -> None:
    rows = [
        {"stage": "pretrain", "step": step, "metric": f"expert_{number}_usage", "value": 0.125}
        for step in (1, 2)
        for number in range(len(EXPERTS))
    ]
    (chart,) = training_curves(rows).others
    scale = chart.spec["layer"][0]["encoding"]["color"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True)) == {
        f"Expert {number}": colour for number, colour in enumerate(EXPERTS)
    }
