"""The demo in its tiny form, run once without any fault: what every other run must equal."""

import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TextIO

import pytest

from pipeline.engine.dag import DAG
from storage.store.artifacts import ArtifactStore
from tests.faults.worker import work
from tests.support.forks import FORKS

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Pipeline:
    """Starts the tiny demo on stores below a folder, each run in a process group of its own."""

    folder: Path
    changes: Mapping[str, object]

    def start(self, store: Path, uri: str = "", rerun: Sequence[str] = ()) -> "Running":
        """Start a run on a folder, or on `uri` with the folder for its work.

        What libraries say on standard error goes to a file beside the folder.
        """
        changes = [f"{path}={value}" for path, value in self.changes.items()]
        variables = environment() | ({"PHIVISION_WORKDIR": str(store)} if uri else {})
        reader, writer = FORKS.Pipe(duplex=False)
        errors = store.with_suffix(".err")
        told = (writer, errors, ROOT, variables, uri or str(store), rerun, *changes)
        process = FORKS.Process(target=work, args=told)
        process.start()
        writer.close()
        printed = os.fdopen(os.dup(reader.fileno()))
        reader.close()
        return Running(process, printed, errors)

    def finish(self, store: Path, uri: str = "", rerun: Sequence[str] = ()) -> list[list[str]]:
        """Run to the end and return what was printed about each stage."""
        running = self.start(store, uri, rerun)
        with running.printed:
            text = running.printed.read()
        running.process.join(timeout=600)
        assert running.process.exitcode == 0, running.errors.read_text()[-3000:]
        return [line.split() for line in text.splitlines()[1:]]


@dataclass(frozen=True)
class Running:
    """A run under way, forked from a process that has loaded the libraries.

    Attributes:
        process: The leader of its process group.
        printed: Its standard output.
        errors: The file with its standard error.
    """

    process: ForkServerProcess
    printed: TextIO
    errors: Path

    def kill(self) -> None:
        """Kill it with all its children, unless it has ended, and wait until it is gone."""
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.printed.close()


def environment() -> dict[str, str]:
    """Return the environment of a child: one thread, and byte code that is kept somewhere."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    if variables.pop("PYTHONDONTWRITEBYTECODE", ""):
        # Compiling torch's modules anew in each of a hundred processes would take half an hour.
        variables["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "phivision-bytecode")
    return variables


def digests(store: ArtifactStore) -> dict[str, list[str]]:
    """Return the digests of all committed artifacts, by stage."""
    return {
        stage.name: [manifest.digest for manifest in store.manifests(stage.name)] for stage in DAG
    }


def opened(path: Path) -> ArtifactStore:
    """Return a store as a process that has never seen it."""
    return ArtifactStore(str(path), path.with_suffix(".cache"))


@dataclass(frozen=True)
class Reference:
    """A run that was never disturbed: its store, its digests, and each stage's seconds."""

    store: Path
    digests: dict[str, list[str]]
    seconds: dict[str, float]


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory, tiny: Mapping[str, object]) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("pipeline"), tiny)


@pytest.fixture(scope="session")
def reference(pipeline: Pipeline) -> Reference:
    store = pipeline.folder / "reference"
    rows = pipeline.finish(store)
    return Reference(store, digests(opened(store)), {row[0]: float(row[2]) for row in rows})
