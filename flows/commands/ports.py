"""Check a port of this machine before anything slow is done for a server."""

import errno
import socket

from pipeline.errors import PipelineError


def refuse_taken(host: str, port: int, remedy: str) -> None:
    """Raise if no server could listen there; port 0, any free one, is always fine.

    Raises:
        PipelineError: The port is in use, or not open to this user, or the address is not one of
            this machine's.
    """
    if not port:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do, so that a port whose last connections still linger is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise PipelineError(f"{port} is not a port", f"use 1 to 65535: {remedy}") from None
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            fault = "is in use" if taken else f"cannot be listened on: {error.strerror or error}"
            stop = "stop the other server, or " if taken else ""
            raise PipelineError(f"port {port} of {host} {fault}", f"{stop}{remedy}") from None
