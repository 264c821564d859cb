"""What tests do with a chat server, by its API and by its page."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest


def upload(client: httpx.Client, data: bytes, name: str = "image.png") -> httpx.Response:
    return client.post("/gradio_api/upload", files={"files": (name, data, "image/png")})


def ask(client: httpx.Client, question: str, path: str | None, **options: Any) -> str:
    """Ask through the server's API and return its events: the answer, or what went wrong.

    Args:
        client: Somebody.
        question: The question.
        path: What the upload of the image returned.
        **options: Other arguments of the API, such as a temperature.
    """
    message = {"text": question, "files": [] if path is None else [path]}
    return _event(client, "chat", "v2/chat", {"message": message, **options})


def look(client: httpx.Client, history: list[dict[str, Any]]) -> str:
    """Ask where the newest answer came from and return the last event, as `ask` does."""
    return _event(client, "look", "look", {"data": [history]})


def answer_in(events: str) -> dict[str, Any]:
    """Return the answer in the events of `ask`, with how it was written."""
    assert "event: complete" in events, events
    return json.loads(events.rpartition("data: ")[2])[0]


def _event(client: httpx.Client, name: str, place: str, body: Any) -> str:
    started = client.post(f"/gradio_api/call/{place}", json=body)
    if started.status_code != 200:
        return f"error {started.status_code}"
    event = started.json()["event_id"]
    with client.stream("GET", f"/gradio_api/call/{name}/{event}") as events:
        return "".join(events.iter_text())


def attach(page: Any, name: str, data: bytes) -> None:
    """Add an image on the page, as the file chooser does, and wait until it shows."""
    picked = {"name": name, "mimeType": "image/png", "buffer": data}
    page.locator("#line textarea:enabled").wait_for()
    _until_shown(page, lambda: page.set_input_files("#line input[type=file]", picked))


def paste(page: Any, data: bytes) -> None:
    """Add an image on the page from the clipboard, and wait until it shows."""
    _until_shown(page, lambda: page.evaluate(_PASTE, list(data)))


_PASTE = """bytes => {
  const clipboard = new DataTransfer();
  clipboard.items.add(new File([new Uint8Array(bytes)], "image.png", {type: "image/png"}));
  const event = {clipboardData: clipboard, bubbles: true, cancelable: true};
  document.querySelector("#line textarea").dispatchEvent(new ClipboardEvent("paste", event));
}"""


def _until_shown(page: Any, add: Callable[[], None]) -> None:
    for _ in range(10):  # the page may stand before its scripts listen
        add()
        for _ in range(30):
            if page.locator("#line .thumbnail-item").count():
                return
            page.wait_for_timeout(100)
    pytest.fail("the image does not show beside the line")
