"""The demo in its tiny form, run once without any fault: what every other run must equal."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.dag import DAG
from storage.artifacts import ArtifactStore

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Pipeline:
    """Starts the tiny demo on stores below a folder, each run in a process group of its own."""

    folder: Path
    changes: Mapping[str, object]

    def start(self, store: Path, uri: str = "") -> subprocess.Popen[str]:
        """Start a run on a folder, or on `uri` with the folder for its work.

        What libraries say on standard error goes to a file beside the folder.
        """
        assignments = [f"{path}={value}" for path, value in self.changes.items()]
        command = [sys.executable, "-m", "tests.faults.worker", uri or str(store), *assignments]
        variables = environment() | ({"PHIVISION_WORKDIR": str(store)} if uri else {})
        with store.with_suffix(".err").open("a") as errors:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def finish(self, store: Path, uri: str = "") -> list[list[str]]:
        """Run to the end and return what was printed about each stage."""
        process = self.start(store, uri)
        text = process.communicate(timeout=600)[0]
        assert process.returncode == 0, store.with_suffix(".err").read_text()[-3000:]
        return [line.split() for line in text.splitlines()[1:]]


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
