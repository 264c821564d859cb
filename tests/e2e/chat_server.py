"""A chat server in a process of its own, which notes every address outside this machine it asks.

`python chat_server.py LOG MODULE ARGUMENTS…` runs a module (or a file) under an audit hook.
"""

import runpy
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCAL = {"127.0.0.1", "localhost", "::1", "0.0.0.0", None, ""}


def watch_network(log: Path) -> None:
    """Write down every host outside this machine that this process looks up or connects to."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            host = arguments[0]
        elif event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
            host = arguments[1][0]
        else:
            return
        host = host.decode() if isinstance(host, bytes) else host
        if host not in LOCAL:
            with log.open("a") as stream:
                stream.write(f"{event} {host}\n")

    sys.addaudithook(hook)


@contextmanager
def serving(
    log: Path, arguments: list[str], environment: Mapping[str, str], folder: Path = ROOT
) -> Generator[str]:
    """Start a server, wait until it says where it answers, and stop it at the end.

    Args:
        log: Gets `asked` (hosts) and `err` (its stderr) beside it.
        arguments: Module and its arguments, or a file ending in .py.
        environment: Its whole environment.
        folder: Where it runs.
    """
    # No variable may keep the server from asking: it has to ask nobody of its own accord.
    environment = {k: v for k, v in environment.items() if k != "HF_HUB_OFFLINE"}
    command = [sys.executable, str(Path(__file__).resolve()), str(log), *arguments]
    with log.with_suffix(".err").open("wb") as errors:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors
        )
    try:
        assert server.stdout is not None
        line = server.stdout.readline().decode()
        assert " answers at " in line, line + log.with_suffix(".err").read_text()
        yield line.partition(" answers at ")[2].split()[0].rstrip("/")
        assert server.poll() is None, log.with_suffix(".err").read_text()
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        assert server.stdout is not None
        server.stdout.close()


def main() -> None:
    """Run what the command line names, watched."""
    log, what, *rest = sys.argv[1:]
    watch_network(Path(log))
    sys.path[0] = str(Path.cwd())
    sys.argv = [what, *rest]
    if what.endswith(".py"):
        runpy.run_path(what, run_name="__main__")
    else:
        runpy.run_module(what, run_name="__main__")


if __name__ == "__main__":
    main()
