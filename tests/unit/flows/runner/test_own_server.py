"""The server of a run: its death is noticed at once, and told with the last that it said."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import Any

import pytest

from flows.runner.own_server import OwnServer
from pipeline.errors import PipelineError


@pytest.fixture
def start() -> Generator[Any]:
    """Starts Python code in the place of a server; `told` is where it tells."""
    with ExitStack() as stack:

        def started(code: str) -> OwnServer:
            news, told = os.pipe()
            words = stack.enter_context(TemporaryFile())
            process = subprocess.Popen(
                [sys.executable, "-c", f"import os, signal, sys\ntold = {told}\n{code}"],
                stdin=subprocess.PIPE,
                stdout=words,
                stderr=words,
                pass_fds=[told],
            )
            os.close(told)
            stack.callback(os.close, news)
            server = OwnServer(process, news, words)
            stack.callback(server.end)
            return server

        yield started


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import no_such_module", "status 1: ModuleNotFoundError: No module named 'no_such"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "it ended with SIGKILL"),
        ("sys.exit(3)", "it ended with status 3"),
        ("os.write(told, b'OSError: the disk is full\\n'); os.read(0, 1)", "the disk is full"),
    ],
)
def test_a_server_that_does_not_come_up_is_told_with_its_last_words(
    start: Any, code: str, told: str
) -> None:
    with pytest.raises(PipelineError, match=rf"own server cannot start: .*{told}") as caught:
        start(code).wait()
    assert "PREFECT_API_URL" in str(caught.value)


def test_a_server_is_waited_for_and_ends_when_it_is_told_to(start: Any) -> None:
    server = start("os.write(told, b'rea'); os.write(told, b'dy\\n'); os.read(0, 1); sys.exit(4)")
    server.wait()
    assert server.death == ""
    server.end()
    assert "status 4" in server.death
