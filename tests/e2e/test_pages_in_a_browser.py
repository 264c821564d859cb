"""The report and the dataset's page as a browser shows them, on a desk and on a phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.support.accessibility import serious_faults
from tests.support.small_store import build_store

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]
SIZES = ((1280, 800), (390, 844))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    build_store(root)
    cli = Cli(root / "store")
    for command in ("report", "browse"):
        cli.ok(command, "--output", str(root / f"{command}.html"))
    return {command: root / f"{command}.html" for command in ("report", "browse")}


@pytest.fixture(params=SIZES, ids=lambda size: str(size[0]))
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    yield page
    page.close()


@pytest.mark.parametrize("name", ["report", "browse"])
def test_a_page_fits_shows_its_images_and_asks_nobody(
    pages: dict[str, Path], page: Any, name: str
) -> None:
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.goto(pages[name].as_uri())
    page.get_by_role("heading", level=1).wait_for()
    assert page.evaluate("document.images.length") > 5
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    broken = "[...document.images].filter(each => !each.complete || !each.naturalWidth).length"
    assert page.evaluate(broken) == 0
    outer, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert outer <= inner  # nobody has to scroll sideways, with everything opened either
    own = (pages[name].as_uri(), "data:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert faults == []  # nothing was refused by the page's own policy


@pytest.mark.parametrize("name", ["report", "browse"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_has_no_serious_accessibility_fault(
    pages: dict[str, Path], browser: Any, name: str, scheme: str
) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert serious_faults(page) == []
    page.close()


def test_a_link_of_the_report_opens_the_part_it_leads_to(
    pages: dict[str, Path], browser: Any
) -> None:
    page = browser.new_page()
    page.goto(pages["report"].as_uri())
    height = page.evaluate("document.documentElement.scrollHeight / window.innerHeight")
    assert height < 3.5  # the rest is folded
    assert not page.get_by_text("Loss (finetuning)").is_visible()
    page.locator("nav a", has_text="Training").click()
    page.get_by_text("Loss (finetuning)").wait_for(state="visible")
    page.close()


def test_a_chart_becomes_live_tells_values_and_takes_a_choice(
    pages: dict[str, Path], browser: Any
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["report"].as_uri())
    page.locator("nav a", has_text="Training").click()
    figure = page.locator("figure.chart", has_text="Loss (finetuning)")
    figure.locator(".live svg").wait_for()
    assert not figure.locator("img").is_visible()  # the still picture has gone
    area = figure.locator(".live svg .background").first.bounding_box()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "step" in tip.inner_text()
    before = axis(figure)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -400)
    page.keyboard.up("Control")
    figure.evaluate("async () => new Promise((done) => setTimeout(done, 300))")
    assert axis(figure) != before  # another part of the axis
    pale = '.mark-line path[opacity="0.08"]'
    assert figure.locator(pale).count() == 0
    figure.locator(".role-legend text", has_text="this run").click()
    figure.locator(pale).first.wait_for(state="attached")
    assert figure.locator(".mark-line path").count() == 4  # two curves of each of two runs
    assert figure.locator(pale).count() == 2
    page.close()


def axis(figure: Any) -> list[str]:
    """Return the labels of a chart's axes."""
    return figure.locator(".role-axis-label text").all_inner_texts()


@pytest.mark.parametrize("name", ["report", "browse"])
def test_without_scripts_the_still_pictures_are_there(
    pages: dict[str, Path], browser: Any, name: str
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages[name].as_uri())
    assert page.locator("figure.chart img").first.is_visible()
    assert page.locator(".live").count() == 0
    context.close()


def test_the_dataset_is_searched_filtered_and_ordered(pages: dict[str, Path], page: Any) -> None:
    page.goto(pages["browse"].as_uri())
    told, cards = page.locator("#told"), page.locator("#cards .card")
    everything = "20 of 20 images"
    assert told.inner_text() == everything
    assert cards.count() == 20
    assert page.locator("#cards .boxes rect").count() == 30  # a square in each, every second wall
    page.get_by_label("Text").fill("ONE <b>Green</b> box")
    assert told.inner_text() == "5 of 20 images"
    page.get_by_label("Text").fill("")
    page.locator("[name=split]").select_option("validation")
    assert told.inner_text() == "2 of 20 images"
    page.get_by_role("button", name="Reset").click()
    page.get_by_text(everything).wait_for()
    page.locator("[name=category]").select_option("wall")
    assert told.inner_text() == "10 of 20 images"
    assert page.locator("#cards .boxes .chosen").count() == 10
    page.get_by_label("boxes").uncheck()
    assert not page.locator("#cards .boxes").first.is_visible()
    page.get_by_role("button", name="Reset").click()
    page.get_by_text(everything).wait_for()
    page.locator("[name=reason]").select_option("refusal")
    assert "There is no image." in cards.inner_text()
    page.close()


def test_predictions_of_the_dataset_page_are_limited_by_condition_and_score(
    pages: dict[str, Path], page: Any
) -> None:
    page.goto(pages["browse"].as_uri())
    told, scores = page.locator("#told"), page.locator("#cards .score")
    right = page.locator("[name=right]")
    page.get_by_label("Condition").select_option("real")
    assert told.inner_text() == "12 of 20 images"
    right.select_option("wrong")
    wrong = int(told.inner_text().split()[0])
    assert set(scores.all_inner_texts()) == {"0.00"}
    right.select_option("right")
    assert int(told.inner_text().split()[0]) + wrong == 12
    assert "people: " in page.locator("#cards .said").first.inner_text()
    right.select_option("any")
    page.get_by_label("Prediction").select_option("caption")
    page.get_by_label("Order").select_option("worst")
    ordered = [float(text) for text in scores.all_inner_texts()]
    assert ordered == sorted(ordered)
    assert len(ordered) == 12
    page.get_by_label("Lowest score").fill(str(ordered[-1] - 0.01))
    assert 0 < int(told.inner_text().split()[0]) < 12
    page.get_by_label("Lowest score").fill("1000")
    assert told.inner_text() == "0 of 20 images"


@pytest.mark.parametrize("name", ["report", "browse"])
def test_every_link_of_a_page_leads_to_a_place_on_it(
    pages: dict[str, Path], page: Any, name: str
) -> None:
    page.goto(pages[name].as_uri())
    lost = "[...document.querySelectorAll('a')].filter(each => !document.querySelector(each.hash))"
    assert page.evaluate(f"{lost}.length") == 0
    assert page.locator("a").count() > 2
