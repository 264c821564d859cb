"""Serve until interrupted, on loopback by default."""

from collections.abc import Collection
from socket import IPPROTO_TCP, TCP_NODELAY

import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware

from flows.inference.engine import Engine
from flows.inference.warming import freeze, warm
from flows.serve.app import build_app
from flows.serve.completions import Service
from flows.serve.files import Files
from flows.serve.guard import Guard
from flows.serve.limits import ServeLimits
from flows.serve.metrics import Metrics
from flows.surroundings import LOOPBACK
from model.assistant import Assistant


def application(
    assistant: Assistant, key: str, hosts: Collection[str], limits: ServeLimits, *, local: bool
) -> Guard:
    """Return the ASGI application with its middleware.

    Args:
        assistant: Who answers.
        key: The key that clients send, "" where none is asked for.
        hosts: Hosts from which images may be fetched.
        limits: What requests may ask.
        local: Whether it is on loopback without a key: it then answers only by a name of loopback,
            because a page of another site could be made to resolve to this machine.
    """
    engine = Engine(assistant)
    metrics = Metrics(lambda: engine.active, lambda: engine.waiting)
    app = build_app(Service(assistant, engine, metrics, limits, frozenset(hosts), Files(limits)))
    if local:
        names = [f"[{name}]" if ":" in name else name for name in LOOPBACK]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    return Guard(app, key, limits)


def serve(
    assistant: Assistant,
    host: str,
    port: int,
    key: str = "",
    hosts: Collection[str] = (),
    limits: ServeLimits | None = None,
    threads: int | None = None,
) -> None:
    """Serve until interrupted; a line on standard output says where.

    Args:
        assistant: Who answers.
        host: Address of a network interface.
        port: Port; 0 takes a free one.
        key: See `application`.
        hosts: See `application`.
        limits: What requests may ask.
        threads: CPU threads of torch; None to choose.
    """
    local = host in LOOPBACK and not key
    app = application(assistant, key, hosts, limits or ServeLimits(), local=local)
    warm(assistant, threads)
    freeze()
    config = uvicorn.Config(app, host, port, log_level="warning", server_header=False)
    with config.bind_socket() as socket:
        # asyncio sets it only for sockets that name their protocol, which uvicorn's does not: an
        # answer in two packets would wait 40 ms for the acknowledgement of the first.
        socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        socket.listen(config.backlog)  # who has read the line below is not refused
        where = f"[{host}]" if ":" in host else host
        name, taken = assistant.card["name"], socket.getsockname()[1]
        print(f"{name} answers at http://{where}:{taken}/v1  (Ctrl-C stops it)", flush=True)
        uvicorn.Server(config).run(sockets=[socket])
