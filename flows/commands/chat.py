"""`phivision chat`: the published assistant, and others of the store, in a browser."""

import tempfile
from pathlib import Path

from flows.chat.launching import Door
from flows.chat.server import serve_chat
from flows.commands.chat_models import models_to_chat
from flows.commands.example_images import write_examples
from flows.commands.ports import refuse_taken
from flows.surroundings import LOOPBACK
from flows.waiting import waiting
from pipeline.errors import PipelineError
from pipeline.publishing.export import trace
from pipeline.publishing.gate import published_manifest
from pipeline.settings import Settings
from storage.store.manifest import Manifest


def chat(settings: Settings, bundle: Manifest | str | None, door: Door) -> None:
    """Serve the chat until interrupted.

    Args:
        settings: Store and device.
        bundle: A bundle's folder or `hf://` address, or the manifest of one in the store, instead
            of the store's published one.
        door: Where to listen.

    Raises:
        PipelineError: Nothing is published, the chat would be open to everybody, or the port is
            in use.
    """
    check_door(door)
    refuse_taken(door.host, door.port, "choose another port with --port; 0 takes a free one")
    with waiting("loading the assistant"):
        models = models_to_chat(settings, bundle)
        assistant = models.get()
    with tempfile.TemporaryDirectory(prefix="phivision-examples-") as name:
        of_store = not isinstance(bundle, str)
        examples = Path(name) if of_store else assistant.folder / "examples"
        if of_store and settings.is_local:
            store = settings.open_store()
            write_examples(trace(store, bundle or published_manifest(store)), examples, 3)
        serve_chat(models, examples, door, threads=settings.threads)


def check_door(door: Door) -> None:
    """Refuse a chat that other machines could use without a password.

    Raises:
        PipelineError: It would be open, or only half of user and password is given.
    """
    if bool(door.user) != bool(door.password):
        raise PipelineError(
            "a user needs a password and a password a user",
            "give --user and set PHIVISION_CHAT_PASSWORD",
        )
    if door.host not in LOOPBACK and not door.user:
        raise PipelineError(
            f"--host {door.host} would let everybody on the network in",
            "give --user and set PHIVISION_CHAT_PASSWORD, or leave the host at 127.0.0.1",
        )
