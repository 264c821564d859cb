"""Serve a page of Gradio: on loopback by default, with all of its other features off.

It imports neither stores nor Prefect, because a Space has neither.
"""

import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flows.chat.guard import guards
from flows.chat.uploads import Uploads
from flows.surroundings import LOOPBACK, spare_loopback

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


def launch(page: Any, look: Mapping[str, Any], name: str, door: Door, uploads: Uploads) -> None:
    """Serve a page until interrupted; a line on standard output says where.

    Args:
        page: Gradio's Blocks.
        look: Theme and style.
        name: Who answers.
        door: Where to listen.
        uploads: The files of visitors.

    Raises:
        OSError: The port is in use.
    """
    _, address, _ = page.launch(
        server_name=door.host,
        server_port=door.port or _free_port(door.host),
        auth=(door.user, door.password) if door.user else None,
        max_file_size=uploads.limits.image_bytes,
        prevent_thread_lock=True,
        quiet=True,
        app_kwargs={
            "docs_url": None,
            "redoc_url": None,
            "middleware": guards(uploads, local=door.host in LOOPBACK and not door.user),
        },
        **_CLOSED,
        **look,
    )
    print(f"{name} answers at {address}  (Ctrl-C stops it)", flush=True)
    with uploads.swept():
        page.block_thread()


def theme() -> Any:
    """Return the look of our pages: fonts of the system, so that nothing is fetched."""
    import gradio as gr  # reads its environment when it is imported

    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    return gr.themes.Default(
        primary_hue="blue", font=fonts, font_mono=("ui-monospace", "monospace")
    ).set(  # Gradio's own grey is too pale to read
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
    )


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


def _free_port(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
