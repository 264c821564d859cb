"""The explorer in a real browser: filters, pages, one image, similar ones, on desk and phone."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.chat_server import serving
from tests.support.small_store import build_store, image_rows

pytest.importorskip("gradio", reason="the explorer needs the extra `chat`")
pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explorer") / "asked"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[str]:
    store = build_store(tmp_path_factory.mktemp("store"))
    arguments = ["flows.cli", "explore", "--store", store.uri, "--port", "0"]
    with serving(log, arguments, os.environ) as found:
        yield found


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)
    page.goto(address)
    page.locator("#gallery img").first.wait_for()
    yield page
    page.close()


def told(page: Any) -> str:
    return page.locator("#told textarea, #told input").input_value()


def wait_for(page: Any, text: str) -> None:
    page.wait_for_function(
        "text => document.querySelector('#told textarea, #told input').value.includes(text)",
        arg=text,
    )


def test_images_are_listed_searched_and_looked_at(page: Any, log: Path) -> None:
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url))
    total = len(image_rows())
    assert f"of {total} images" in told(page)
    page.locator("#text textarea, #text input").fill("no caption says this")
    page.click("#find")
    wait_for(page, "no image matches")
    page.locator("#text textarea, #text input").fill("")
    page.click("#find")
    wait_for(page, f"of {total} images")
    page.locator("#gallery button img").first.click()
    head = page.locator("#head textarea, #head input")
    page.wait_for_function(
        "document.querySelector('#head textarea, #head input').value.includes('pixels')"
    )
    before = head.input_value()
    assert page.locator("#texts textarea").input_value()
    page.locator("#near button img").first.click()  # on to a similar image
    page.wait_for_function(
        "before => document.querySelector('#head textarea, #head input').value !== before",
        arg=before,
    )
    widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]
    own = page.url.rstrip("/")
    assert [url for url in outside if not url.startswith((own, "data:", "blob:"))] == []
    assert not log.exists() or log.read_text() == ""


def test_a_page_of_another_site_that_resolves_to_this_machine_is_refused(address: str) -> None:
    port = address.rpartition(":")[2]
    with httpx.Client(base_url=address, timeout=60) as client:
        for host in ("evil.example", f"evil.example:{port}"):
            for place in ("/", "/config", "/gradio_api/info"):
                assert client.get(place, headers={"Host": host}).status_code == 400, (host, place)
        assert client.get("/", headers={"Host": f"localhost:{port}"}).status_code == 200
