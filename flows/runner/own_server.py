"""Prefect's server for one run: a process that ends with its run, and not before it.

Prefect starts one by itself where no server is named. That one would import modules from the
current folder, be waited for for minutes after it died, get the terminal's Ctrl-C before the run,
and outlive a run that was killed. So the run starts its own and names it in PREFECT_API_URL, as
for any other server. It has its own session and a pipe that breaks however the run ends, listens
on a socket that the run has bound, and reports when it is ready or why it cannot start.
"""

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from pipeline.errors import PipelineError
from pipeline.interpreter import child_environment, importing
from storage.errors import redact

PATIENCE = 600.0  # seconds until the server is ready; usually 5 to 10, many more on a busy machine
GRACE = 5.0  # seconds that it has to end
_READY = "ready"
_STARTED: list["OwnServer"] = []  # the one of this process; several runs may share it
# Keeps its address set until the process ends: Prefect's threads send their last logs then.
_NAMED = ExitStack()


class OwnServer:
    """A server that was started and may not be ready yet.

    Args:
        process: The server.
        news: File descriptor of its one line: it is ready, or why it cannot start.
        words: File of its output.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", news: int, words: IO[bytes]) -> None:
        self._process = process
        self._news = news
        self._words = words
        self._report = ""
        self._ending = False
        self._lost = False

    def wait(self) -> None:
        """Return when it is ready.

        Raises:
            PipelineError: It cannot start, has died, or is not ready in time.
        """
        while "\n" not in self._report:
            if not select.select([self._news], [], [], PATIENCE)[0]:
                raise PipelineError(
                    f"Prefect's own server is not ready after {PATIENCE:.0f} s", _REMEDY
                )
            part = os.read(self._news, 4096)
            if not part:
                break
            self._report += part.decode(errors="replace")
        if self._report.strip() != _READY:
            if not self._report:  # it closed the pipe without a message: it is about to end
                self._process.wait()
            cause = redact(self._report.strip()) or self.death
            newer = "Can't locate revision" in cause
            raise PipelineError(
                f"Prefect's own server cannot start: {cause}",
                _NEWER.format(home=_home()) if newer else _REMEDY,
            )

    @property
    def death(self) -> str:
        """How it ended and its last line of output, "" while it runs."""
        status = self._process.poll()
        if status is None:
            return ""
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        how = f"status {status}" if status >= 0 else signal.Signals(-status).name
        return f"it ended with {how}{': ' if last else ''}{redact(last)}"

    def watch(self) -> None:
        """End this process, with the cause, as soon as the server dies before it."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        self._process.wait()
        if self._ending:
            return
        os.kill(os.getpid(), signal.SIGTERM)  # stages release what they hold
        time.sleep(GRACE)  # Prefect's engine would try for minutes to report it to the server
        if not self._lost:
            print(f"phivision: {self.lost()}", file=sys.stderr, flush=True)
        os._exit(1)

    def lost(self, error: str = "") -> PipelineError:
        """Return the error for its death, or for `error` where it has not died."""
        self._lost = True
        return PipelineError(
            f"Prefect's server does not answer any more: {self.death or error}",
            "run again, finished work is kept",
        )

    def end(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._ending = True
        self._process.stdin.close()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_REMEDY = "`prefect server start` may print more; or set PREFECT_API_URL to a running server"
_NEWER = (
    "a newer Prefect has used the database in {home}: install it, or set PREFECT_HOME to "
    "another folder"
)


def own_server() -> OwnServer | None:
    """Start this process's own server and give Prefect its address; None where one is named.

    It takes seconds to be ready, in which the rest can be imported.

    Raises:
        PipelineError: Prefect's home cannot be written, so its server would never be ready.
    """
    from prefect.settings import PREFECT_API_URL

    if _STARTED:
        return _STARTED[0]
    if PREFECT_API_URL.value():
        return None
    _check_home()
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        server = _start(door)
    _STARTED.append(server)
    atexit.register(server.end)
    _name_to_prefect(f"http://127.0.0.1:{port}")
    return server


def _start(door: socket.socket) -> OwnServer:
    news, pipe = os.pipe()
    words = TemporaryFile()  # noqa: SIM115 - as long as the server runs
    numbers = (door.fileno(), pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *map(str, numbers)],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=words,
        stderr=words,
        pass_fds=numbers,
        start_new_session=True,
    )
    os.close(pipe)
    return OwnServer(process, news, words)


def _name_to_prefect(address: str) -> None:
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_SERVER_API_AUTH_STRING,
        PREFECT_SERVER_API_BASE_PATH,
        temporary_settings,
    )

    url = f"{address}{PREFECT_SERVER_API_BASE_PATH.value() or '/api'}"
    changes: dict[Any, str] = {PREFECT_API_URL: url}
    if password := PREFECT_SERVER_API_AUTH_STRING.value():
        changes[PREFECT_API_AUTH_STRING] = password
    _NAMED.enter_context(temporary_settings(changes))


def _home() -> Path:
    from prefect.settings import PREFECT_HOME

    return Path(PREFECT_HOME.value())


def _check_home() -> None:
    home = _home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=home).close()
    except OSError as error:
        raise PipelineError(
            f"{home}, where Prefect keeps its database, cannot be written: {error.strerror}",
            "set PREFECT_HOME to a folder that can be written",
        ) from None


# -- the process of the server: `python -m flows.runner.own_server SOCKET PIPE` ----------

Message = MutableMapping[str, Any]


def _serve(door: int, pipe: int) -> None:
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    try:
        with importing():
            import uvicorn
            from prefect.server.api.server import create_app

            app = _Reporting(create_app(ephemeral=True, final=True), pipe)
        # uvloop, which uvicorn would take, does not name the address that refused a connection.
        config = uvicorn.Config(app, log_level="error", lifespan="on", loop="asyncio")
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=door)])
    except Exception as error:
        _tell(pipe, _cause(error))
        raise


class _Reporting:
    """The server's app, which reports to the run once that it has started, or why it has not."""

    def __init__(self, app: Any, pipe: int) -> None:
        self._app = app
        self._pipe = pipe

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                _tell(self._pipe, _READY)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            _tell(self._pipe, _cause(error))
            raise


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def _tell(pipe: int, news: str) -> None:
    with suppress(OSError):  # the run has ended
        os.write(pipe, f"{news}\n".encode())


def _end_with_the_run() -> None:
    # Returns when the run's end of the pipe is closed; sys.stdin would hold a lock at the exit.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
