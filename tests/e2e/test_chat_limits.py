"""A chat that is small and slow: what a crowd, a large image and a full disk meet; stopping."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.chat_client import ask, attach, upload
from tests.e2e.chat_server import serving
from tests.e2e.small_chat import LIMITS, PAUSE
from tests.support.tiny_bundle import image

pytest.importorskip("gradio", reason="the chat needs the extra `chat`")
pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]
QUESTION = "What colour is it?"


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("small-chat") / "asked"
    with serving(log, ["tests/e2e/small_chat.py", str(tiny_bundle)], os.environ) as address:
        yield address


@pytest.fixture
def visitor(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        wait_for_room(client)
        yield client


@pytest.fixture
def page(server: str, browser: Any, visitor: httpx.Client) -> Iterator[Any]:
    """A phone that shows the chat."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(60_000)
    page.goto(server)
    page.locator("#line textarea:enabled").wait_for()
    yield page
    page.close()


def wait_for_room(visitor: httpx.Client) -> None:
    """Wait until what another test has sent is gone again."""
    for _ in range(60):
        if upload(visitor, image("green") + bytes(40_000)).status_code == 200:
            return
        time.sleep(1)
    pytest.fail("the server never has room for an image again")


def test_a_stopped_answer_stays_as_far_as_it_is_and_the_next_question_works(
    page: Any, assistant: Any
) -> None:
    whole = assistant.ask(image(), QUESTION)
    attach(page, "red.png", image())
    line = page.locator("#line textarea")
    line.fill(QUESTION)
    line.press("Enter")
    answers = page.locator("#talk .bot [data-testid=bot]")
    answers.first.wait_for()
    page.locator("#line .stop-button").click()
    page.locator("#line textarea:enabled").wait_for()
    page.locator("#line .submit-button").wait_for()
    said = answers.last.inner_text().strip()
    assert said
    assert said != whole
    assert whole.startswith(said)
    page.wait_for_timeout(1000)
    assert answers.last.inner_text().strip() == said  # nothing comes after the stop
    line.fill("And now?")
    line.press("Enter")
    second = assistant.ask(image(), "And now?", [(QUESTION, said)])
    page.get_by_text(second, exact=True).first.wait_for()


def test_visitors_who_leave_free_their_places(
    visitor: httpx.Client, browser: Any, server: str
) -> None:
    """One closes the page, one drops the stream: the only place is free long before the end."""
    tokens = 40
    path = upload(visitor, image()).json()[0]
    for leave in (close_the_page, drop_the_stream):
        leave(server, browser, visitor, path, tokens)
        begun = time.monotonic()
        assert "event: complete" in ask(visitor, QUESTION, path, tokens=1)
        assert time.monotonic() - begun < tokens * PAUSE / 2


def close_the_page(
    server: str, browser: Any, visitor: httpx.Client, path: str, tokens: int
) -> None:
    page = browser.new_page()
    page.goto(server)
    attach(page, "red.png", image())
    page.get_by_text("Settings").click()
    page.get_by_label("Longest answer, in tokens").first.fill(str(tokens))
    page.locator("#line textarea").fill(QUESTION)
    page.locator("#line textarea").press("Enter")
    page.locator("#talk .bot [data-testid=bot]").first.wait_for()
    page.close()


def drop_the_stream(
    server: str, browser: Any, visitor: httpx.Client, path: str, tokens: int
) -> None:
    body = {"message": {"text": QUESTION, "files": [path]}, "tokens": tokens}
    event = visitor.post("/gradio_api/call/v2/chat", json=body).json()["event_id"]
    with visitor.stream("GET", f"/gradio_api/call/chat/{event}") as events:
        next(line for line in events.iter_lines() if line == "event: generating")


def test_an_image_that_is_too_large_is_named_with_the_limit(page: Any) -> None:
    large = {
        "name": "large.png",
        "mimeType": "image/png",
        "buffer": image() + bytes(LIMITS.image_bytes),
    }
    page.set_input_files("#line input[type=file]", large)
    page.get_by_text("exceed the maximum allowed size").wait_for()


def test_who_comes_when_the_queue_is_full_is_told_so(
    visitor: httpx.Client, page: Any, assistant: Any
) -> None:
    path = upload(visitor, image()).json()[0]
    attach(page, "red.png", image())
    page.locator("#line textarea").fill(QUESTION)
    with ThreadPoolExecutor(8) as crowd:
        asking = [crowd.submit(ask, visitor, QUESTION, path) for _ in range(8)]
        while not any(each.done() for each in asking):
            time.sleep(0.05)
        page.locator("#line textarea").press("Enter")
        page.get_by_text("busy. Please try again").wait_for()
        said = [each.result() for each in asking]
    turned_away = [text for text in said if text == "error 503"]
    answered = [text for text in said if "event: complete" in text]
    assert len(answered) + len(turned_away) == 8
    assert len(answered) >= 1 + LIMITS.waiting
    assert turned_away
    page.locator("#line textarea").press("Enter")  # the question still stands there
    page.get_by_text(assistant.ask(image(), QUESTION), exact=True).wait_for()


def test_uploads_end_at_the_quota_and_leave_by_age(visitor: httpx.Client) -> None:
    first = upload(visitor, image()).json()[0]
    stored = 0
    while (sent := upload(visitor, stored.to_bytes(40_000, "big"))).status_code == 200:
        stored += 40_000
        assert stored <= LIMITS.folder_bytes
    assert sent.status_code == 507
    assert "try again later" in sent.text
    assert visitor.get(f"/gradio_api/file={first}").status_code == 200
    wait_for_room(visitor)
    assert visitor.get(f"/gradio_api/file={first}").status_code in (403, 404)
    assert "event: error" in ask(visitor, QUESTION, first)


def test_a_request_without_a_length_or_too_long_is_not_read(visitor: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        yield from [b"x" * 1000] * 1000

    assert visitor.post("/gradio_api/upload", content=endless()).status_code == 411
    assert visitor.post("/gradio_api/call/chat", content=bytes(10**6)).status_code == 413
