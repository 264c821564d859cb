"""`phivision serve`: the published assistant behind an OpenAI-compatible address."""

from collections.abc import Sequence
from pathlib import Path

from flows.commands.assistant import open_assistant
from flows.commands.ports import refuse_taken
from flows.serve.server import Place, serve
from flows.surroundings import LOOPBACK
from flows.waiting import waiting
from model.assistant import Assistant
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from storage.store.manifest import Manifest


def serve_assistant(
    settings: Settings,
    bundle: Manifest | Path | str | None,
    host: str,
    port: int,
    key: str,
    hosts: Sequence[str],
) -> None:
    """Serve until interrupted.

    Args:
        settings: Store and device.
        bundle: What to serve instead of the store's published bundle.
        host: Network address to listen on.
        port: Port; 0 takes a free one.
        key: API key that clients send; "" for none.
        hosts: Hosts from which images may be fetched.

    Raises:
        PipelineError: It would be open to everybody, the port is in use, or nothing is published.
    """
    if host not in LOOPBACK and not key:
        raise PipelineError(
            f"--host {host} would let everybody on the network in",
            "set PHIVISION_API_KEY, or leave the host at 127.0.0.1",
        )
    refuse_taken(host, port, "choose another port with --port; 0 takes a free one")

    def load() -> Assistant:
        with waiting("loading the assistant"):
            return open_assistant(settings, bundle)

    serve(load, Place(host, port, key, hosts), threads=settings.threads)
