"""Serve the chat: on loopback by default, reading only temporary files.

The command `phivision chat` and the Space in `deployments/space` both use this file. It imports
neither stores nor Prefect, so that a Space needs only `model` and Gradio.
"""

import importlib
import io
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from flows.chat.guard import guards
from flows.chat.talk import Limits, Talk
from flows.chat.uploads import Uploads
from flows.surroundings import spare_loopback
from model.assistant import Assistant

# Gradio's other features are off; set here, no environment variable can switch them on.
_CLOSED: Mapping[str, Any] = MappingProxyType(
    {
        "share": False,
        "allowed_paths": [],
        "footer_links": [],
        "show_error": False,
        "inbrowser": False,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
    }
)


@dataclass(frozen=True)
class Door:
    """Host, port and credentials of the chat.

    Attributes:
        host: Address of a network interface.
        port: Port; 0 takes a free one.
        user: Name that visitors must give, empty for none.
        password: Their password.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    user: str = ""
    password: str = ""


def serve_chat(
    assistant: Assistant,
    examples: Path | None,
    door: Door,
    limits: Limits | None = None,
) -> None:
    """Serve until interrupted.

    Args:
        assistant: The assistant that answers.
        examples: Folder with `examples.json`, a list of {image, question}, and the images.
        door: Where to listen.
        limits: What visitors may ask.

    Raises:
        OSError: The port is in use.
    """
    with temporary_folder() as folder:
        talk = Talk(assistant, folder, limits or Limits())
        shown = read_examples(examples, folder) if examples is not None else []
        uploads = Uploads(folder, talk.limits)
        _warm(assistant)
        from flows.chat.page import build_page, look  # Gradio reads its environment when imported

        page = build_page(talk, shown)
        _, address, _ = page.launch(
            server_name=door.host,
            server_port=door.port or _free_port(door.host),
            auth=(door.user, door.password) if door.user else None,
            max_file_size=talk.limits.image_bytes,
            prevent_thread_lock=True,
            quiet=True,
            app_kwargs={"docs_url": None, "redoc_url": None, "middleware": guards(uploads)},
            **_CLOSED,
            **look(),
        )
        print(f"{assistant.card['name']} answers at {address}  (Ctrl-C stops it)", flush=True)
        with uploads.swept():
            page.block_thread()


@contextmanager
def temporary_folder() -> Generator[Path]:
    """Give Gradio its own folder for uploads, deleted when the server ends.

    It also switches off Gradio's telemetry.
    """
    with tempfile.TemporaryDirectory(prefix="phivision-chat-") as name:
        os.environ |= {
            "GRADIO_TEMP_DIR": name,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRADIO_ALLOWED_PATHS": "",  # an empty list in the call would not overrule it
        }
        spare_loopback()  # Gradio asks itself whether it is up
        yield Path(name)


def read_examples(source: Path, folder: Path) -> list[tuple[str, str]]:
    """Copy a folder's examples to the temporary files and return pairs of image and question."""
    listed = source / "examples.json"
    if not listed.is_file():
        return []
    found = []
    for number, entry in enumerate(json.loads(listed.read_text("utf-8"))):
        image = source / Path(entry["image"]).name
        target = folder / f"examples-{secrets.token_hex(4)}" / f"{number}{image.suffix}"
        target.parent.mkdir(parents=True)
        shutil.copyfile(image, target)
        found.append((str(target), str(entry["question"])))
    return found


def _warm(assistant: Assistant) -> None:
    """Write one word, so that the first visitor does not wait for torch to get ready.

    Where matplotlib is installed, Gradio loads it at the first answer, which takes 1 to 3 seconds.
    """
    with suppress(ImportError):
        importlib.import_module("matplotlib.pyplot")
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "PNG")
    next(assistant.stream(stream.getvalue(), None), None)


def _free_port(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
