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


@pytest.mark.parametrize("name", ["report", "browse"])
def test_every_link_of_a_page_leads_to_a_place_on_it(
    pages: dict[str, Path], page: Any, name: str
) -> None:
    page.goto(pages[name].as_uri())
    lost = "[...document.querySelectorAll('a')].filter(each => !document.querySelector(each.hash))"
    assert page.evaluate(f"{lost}.length") == 0
    assert page.locator("a").count() > 2
