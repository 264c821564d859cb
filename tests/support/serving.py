"""`phivision serve` in a process of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from tests.support.forks import start_command

ROOT = Path(__file__).resolve().parents[2]


class Server(NamedTuple):
    """A running server.

    Attributes:
        address: Where it answers, `/v1` included.
        pid: Its process, which owns the model.
    """

    address: str
    pid: int

    @property
    def place(self) -> str:
        """Host and port."""
        return self.address.removeprefix("http://").removesuffix("/v1")

    @property
    def memory(self) -> int:
        """Bytes that it and its child processes have for themselves."""
        process = psutil.Process(self.pid)
        together = [process, *process.children(recursive=True)]
        return sum(each.memory_full_info().uss for each in together)

    def figures(self) -> dict[str, float]:
        """Return its metrics by name and labels."""
        text = httpx.get(self.address.replace("/v1", "/metrics")).text
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}


@contextmanager
def running(bundle: Path, *options: str, key: str = "") -> Iterator[Server]:
    """Serve a bundle until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve", "--bundle", str(bundle), "--port=0", *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PHIVISION_API_KEY": key},
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield Server(found[0], process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def running_fork(bundle: Path, *options: str, key: str = "") -> Iterator[Server]:
    """The same in a process forked from one that has loaded the libraries: 5 seconds less."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PHIVISION_API_KEY": key}
    arguments = ("serve", "--bundle", str(bundle), "--port=0", *options)
    process, printed = start_command(arguments, variables)
    assert process.pid is not None
    with printed:
        try:
            found = re.search(r"http://\S+", printed.readline())
            assert found is not None
            yield Server(found[0], process.pid)
        finally:
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGINT)
            process.join(30)
