"""Prefect's server for one run: a process that ends with its run, and not before it.

Prefect starts one by itself where no server is named. In the process group of the run it would be
told of Ctrl-C, too, and the run would wait minutes for a server that has gone; and it would outlive
a run that was killed. So it gets a session of its own, and a pipe that breaks however the run ends.
`python -m flows.own_server PORT` is that process.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError
from pipeline.interpreter import importing

if TYPE_CHECKING:
    from prefect.server.api.server import SubprocessASGIServer


def prepare() -> None:
    """Have a server that Prefect starts for this process be one of ours.

    Raises:
        PipelineError: Prefect's home cannot be written, so its server would never be ready.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME

    if PREFECT_API_URL.value():
        return
    home = Path(PREFECT_HOME.value())
    try:
        home.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=home).close()
    except OSError as error:
        raise PipelineError(
            f"{home}, where Prefect keeps its database, cannot be written: {error.strerror}",
            "set PREFECT_HOME to a folder that can be written",
        ) from None
    SubprocessASGIServer._run_uvicorn_command = _start  # ty: ignore[invalid-assignment]


def _start(server: "SubprocessASGIServer") -> "subprocess.Popen[bytes]":
    from prefect.settings import get_current_settings

    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(server.port)],
        # As Prefect does: no window, and no other server below this one.
        env={
            **os.environ,
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
            **get_current_settings().to_environment_variables(exclude_unset=True),
        },
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _serve(port: int) -> None:
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    with importing():
        import uvicorn
        from prefect.server.api.server import create_app

        app = create_app()
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )


def _end_with_the_run() -> None:
    # Returns when the run's end of the pipe is closed; sys.stdin would hold a lock at the exit.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
