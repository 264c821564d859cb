"""Serve until interrupted, on loopback by default: the model here, HTTP in a process beside it."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from socket import IPPROTO_TCP, TCP_NODELAY, socket

import uvicorn

from flows.inference.engine import Engine
from flows.inference.freezing import freeze
from flows.inference.limits import EngineLimits
from flows.inference.warming import warm
from flows.serve.http_process import speak_http
from flows.serve.limits import ServeLimits
from flows.serve.link import Opening, Outbox
from flows.serve.model_process import ModelSide
from flows.surroundings import LOOPBACK
from model.assistant import Assistant
from model.errors import ModelError


@dataclass(frozen=True)
class Place:
    """Where is served, and to whom.

    Attributes:
        host: Address of a network interface.
        port: Port; 0 takes a free one.
        key: The key that clients send, "" where none is asked for.
        hosts: Hosts from which images may be fetched.
        limits: What requests may ask.
    """

    host: str
    port: int
    key: str = ""
    hosts: Collection[str] = ()
    limits: ServeLimits = field(default_factory=ServeLimits)

    @property
    def local(self) -> bool:
        """Whether it is on loopback without a key."""
        return self.host in LOOPBACK and not self.key


def serve(load: Callable[[], Assistant], place: Place, threads: int | None = None) -> None:
    """Serve until interrupted; a line on standard output says where.

    Args:
        load: Gives who answers, while the process that speaks HTTP starts.
        place: Where, and to whom.
        threads: CPU threads of torch; None to choose.

    Raises:
        ModelError: The process that speaks HTTP has ended by itself.
    """
    # Shells let programs in the background ignore it; a server ends when it is told to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with _bound(place) as listening, _http_process(listening) as (process, connection):
        assistant = load()
        warm(assistant, threads)
        freeze()
        connection.send(_opening(assistant, place))
        if not _is_ready(connection):
            raise ModelError("the process that speaks HTTP could not start: it says why above")
        where = f"[{place.host}]" if ":" in place.host else place.host
        name, port = assistant.card["name"], listening.getsockname()[1]
        print(f"{name} answers at http://{where}:{port}/v1  (Ctrl-C stops it)", flush=True)
        _write_answers(assistant, process, connection)


def _bound(place: Place) -> socket:
    """Return a socket that is bound and does not listen yet."""
    listening = uvicorn.Config("", place.host, place.port, log_level="warning").bind_socket()
    # asyncio sets it only for sockets that name their protocol, which uvicorn's does not: an
    # answer in two packets would wait 40 ms for the acknowledgement of the first.
    listening.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return listening


@contextmanager
def _http_process(listening: socket) -> Generator[tuple[BaseProcess, Connection]]:
    """Start the process that speaks HTTP, and end it with the block."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks
    ours, theirs = context.Pipe()
    process = context.Process(target=speak_http, args=(listening, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        ours.close()
        process.terminate()
        process.join()


def _opening(assistant: Assistant, place: Place) -> Opening:
    return Opening(
        folder=assistant.folder,
        prefix=assistant.prefix,
        max_positions=assistant.max_positions,
        shrink=assistant.encoders.shrink,
        key=place.key,
        hosts=place.hosts,
        limits=place.limits,
        local=place.local,
    )


def _is_ready(connection: Connection) -> bool:
    try:
        connection.recv()
    except (EOFError, OSError):
        return False
    return True


def _write_answers(assistant: Assistant, process: BaseProcess, connection: Connection) -> None:
    """Write answers until interrupted, then those that have begun.

    Raises:
        ModelError: See `serve`.
    """
    outbox = Outbox(connection)
    # How many wait is bounded by the process that takes the requests.
    engine = Engine(assistant, EngineLimits(waiting=sys.maxsize), outbox.flush)
    side = ModelSide(engine, connection, outbox)
    with engine.running():
        try:
            side.serve()
        except KeyboardInterrupt:
            process.terminate()  # it takes no more requests, and ends when all are answered
            side.serve()
            raise
    process.join()
    raise ModelError(f"the process that speaks HTTP has ended (exit status {process.exitcode})")
