"""Serve the chat: on loopback by default, reading only temporary files.

The command `phivision chat` and the Space in `deployments/space` both use this file. It imports
neither stores nor Prefect, so that a Space needs only `model` and Gradio.
"""

import importlib
import json
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from flows.chat.launching import Door, launch, temporary_folder
from flows.chat.limits import Limits
from flows.chat.models import Models
from flows.chat.talk import Talk
from flows.chat.uploads import Uploads
from flows.inference.warming import warm


def serve_chat(
    models: Models,
    examples: Path | None,
    door: Door,
    limits: Limits | None = None,
    threads: int | None = None,
) -> None:
    """Serve until interrupted.

    Args:
        models: The models that can be chosen.
        examples: Folder with `examples.json`, a list of {image, question}, and the images.
        door: Where to listen.
        limits: What visitors may ask.
        threads: CPU threads of torch; None to choose.

    Raises:
        OSError: The port is in use.
    """
    with temporary_folder() as folder:
        _load_matplotlib()
        warm(models.get(), threads)
        talk = Talk(models, folder, limits or Limits())
        shown = read_examples(examples, folder) if examples is not None else []
        uploads = Uploads(folder, talk.limits)
        from flows.chat.page import build_page, look  # Gradio reads its environment when imported

        launch(build_page(talk, shown), look(), talk.card["name"], door, uploads)


def read_examples(source: Path, folder: Path) -> list[tuple[str, str]]:
    """Copy a folder's examples to the temporary files and return pairs of image and question."""
    listed = source / "examples.json"
    if not listed.is_file():
        return []
    copied = []
    for number, entry in enumerate(json.loads(listed.read_text("utf-8"))):
        image = source / Path(entry["image"]).name
        target = folder / f"examples-{secrets.token_hex(4)}" / f"{number}{image.suffix}"
        target.parent.mkdir(parents=True)
        shutil.copyfile(image, target)
        copied.append((str(target), str(entry["question"])))
    return copied


def _load_matplotlib() -> None:
    """Load what Gradio loads at the first answer where it is installed, which takes 1 to 3 s."""
    with suppress(ImportError):
        importlib.import_module("matplotlib.pyplot")
