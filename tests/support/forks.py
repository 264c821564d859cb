"""Processes forked from one that has loaded the libraries.

Loading them takes a process 6 seconds, and its work in tiny tests less than one. A forked process
is one of its own like any other: session, folder, environment, streams, exit status. That commands
start from nothing, too, is shown where tests start them as a user does.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import reload
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.preloaded"])


def become(folder: Path, variables: Mapping[str, str], printed: int, errors: int) -> None:
    """Give this forked process a session, a folder, an environment and streams of its own.

    Args:
        folder: Where it works.
        variables: Its whole environment.
        printed: File descriptor that takes its standard output.
        errors: The same of its standard error.
    """
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    os.dup2(printed, 1)
    os.dup2(errors, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def run_command(
    arguments: Sequence[str], environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run `phivision` in a forked process and return what `subprocess.run` would.

    Raises:
        TimeoutError: It did not end in so many seconds, and was killed.
    """
    with TemporaryDirectory() as name:
        streams = [Path(name, "out"), Path(name, "err")]
        process = FORKS.Process(target=_command, args=(*streams, dict(environment), arguments))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{arguments} after {timeout} s: {streams[1].read_text()}")
        printed, said = (stream.read_text() for stream in streams)
        return subprocess.CompletedProcess(list(arguments), process.exitcode, printed, said)


def start_command(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[ForkServerProcess, TextIO]:
    """Start `phivision` in a forked process that lasts, and return it with its standard output."""
    reader, writer = FORKS.Pipe(duplex=False)
    with reader, writer:
        process = FORKS.Process(target=_lasting, args=(writer, dict(environment), arguments))
        process.start()
        return process, os.fdopen(os.dup(reader.fileno()))


def _lasting(printed: Connection, variables: Mapping[str, str], arguments: Sequence[str]) -> None:
    with printed, Path(os.devnull).open("w") as errors:
        become(Path.cwd(), variables, printed.fileno(), errors.fileno())
    _run_main(arguments)


def _command(
    printed: Path, errors: Path, variables: Mapping[str, str], arguments: Sequence[str]
) -> None:
    with printed.open("w") as out, errors.open("w") as err:
        become(Path.cwd(), variables, out.fileno(), err.fileno())
    _run_main(arguments)


def _run_main(arguments: Sequence[str]) -> None:
    import flows
    from flows.cli import main

    reload(flows)  # it sets variables where it is imported, and these are another environment's
    sys.argv = ["phivision", *arguments]
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # multiprocessing leaves them out, and libraries rely on theirs
