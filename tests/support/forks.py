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
from collections.abc import Callable, Mapping, Sequence
from importlib import reload
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

Body = Callable[..., Any]

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
    return _finished(_phivision, arguments, environment, timeout)


def run_code(
    code: str, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a forked process, as `run_command` does a command."""
    return _finished(exec, [code], environment, timeout)


def _finished(
    body: Body, arguments: Sequence[str], environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    with TemporaryDirectory() as name:
        streams = [Path(name, "out"), Path(name, "err")]
        told = (*streams, dict(environment), body, arguments)
        process = FORKS.Process(target=_with_files, args=told)
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
        process = FORKS.Process(target=_with_pipe, args=(writer, dict(environment), arguments))
        process.start()
        return process, os.fdopen(os.dup(reader.fileno()))


def _with_files(
    printed: Path,
    errors: Path,
    variables: Mapping[str, str],
    body: Body,
    arguments: Sequence[str],
) -> None:
    with printed.open("w") as out, errors.open("w") as err:
        become(Path.cwd(), variables, out.fileno(), err.fileno())
    _run(body, arguments)


def _with_pipe(printed: Connection, variables: Mapping[str, str], arguments: Sequence[str]) -> None:
    with printed, Path(os.devnull).open("w") as errors:
        become(Path.cwd(), variables, printed.fileno(), errors.fileno())
    _run(_phivision, arguments)


def _phivision(*arguments: str) -> None:
    from flows.cli import main

    sys.argv = ["phivision", *arguments]
    main()


def _run(body: Body, arguments: Sequence[str]) -> None:
    import flows

    reload(flows)  # it sets variables where it is imported, and these are another environment's
    try:
        body(*arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # multiprocessing leaves them out, and libraries rely on theirs
