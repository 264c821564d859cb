"""What tests do with a chat server, by its API and by its page."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest


def upload(client: httpx.Client, data: bytes, name: str = "image.png") -> httpx.Response:
    return client.post("/gradio_api/upload", files={"files": (name, data, "image/png")})


def ask(client: httpx.Client, question: str, path: str | None) -> str:
    """Ask through the server's API and return the last event: the answer, or what went wrong."""
    files = [] if path is None else [{"path": path, "meta": {"_type": "gradio.FileData"}}]
    return _event(client, "chat", {"text": question, "files": files})


def look(client: httpx.Client, history: list[dict[str, Any]]) -> str:
    """Ask where the newest answer came from and return the last event, as `ask` does."""
    return _event(client, "look", history)


def _event(client: httpx.Client, name: str, data: Any) -> str:
    started = client.post(f"/gradio_api/call/{name}", json={"data": [data]})
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
