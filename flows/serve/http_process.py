"""The process that speaks HTTP, so that it has a core of its own beside the model's.

One Python process uses one core for Python's own work: with a small model, reading requests and
sending texts took as long as writing them, and one waited for the other.
"""

import signal
from functools import partial
from multiprocessing.connection import Connection
from socket import socket

import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware

from flows.inference.freezing import freeze
from flows.inference.limits import EngineLimits
from flows.serve.app import build_app
from flows.serve.completions import Service
from flows.serve.files import Files
from flows.serve.guard import Guard
from flows.serve.link import Opening
from flows.serve.metrics import Metrics
from flows.serve.remote_engine import RemoteEngine
from flows.serve.served import Served
from flows.surroundings import LOOPBACK

_BACKLOG = 2048  # connections that wait to be accepted


def speak_http(listening: socket, connection: Connection) -> None:
    """Answer requests until told to end, or until the model's process has ended.

    Args:
        listening: A bound socket.
        connection: To the model's process, which sends an `Opening` first and gets an answer to it
            when requests are taken.
    """
    # Ctrl-C reaches both processes; the other one ends this one in its order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        opening: Opening = connection.recv()
    except EOFError:
        return
    app = _application(opening, connection)
    config = uvicorn.Config(app, log_level="warning", server_header=False)
    listening.listen(_BACKLOG)
    connection.send(None)
    freeze()
    uvicorn.Server(config).run(sockets=[listening])


def _application(opening: Opening, connection: Connection) -> Guard:
    """Return the ASGI application with its middleware.

    On loopback without a key it answers only by a name of loopback, because a page of another site
    could be made to resolve to this machine.
    """
    assistant, limits = Served(opening), opening.limits
    end = partial(signal.raise_signal, signal.SIGTERM)  # which uvicorn takes as a request to end
    engine = RemoteEngine(connection, assistant, EngineLimits(), end)
    metrics = Metrics(lambda: engine.active, lambda: engine.waiting)
    hosts = frozenset(opening.hosts)
    app = build_app(Service(assistant, engine, metrics, limits, hosts, Files(limits)))
    if opening.local:
        names = [f"[{name}]" if ":" in name else name for name in LOOPBACK]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    return Guard(app, opening.key, limits)
