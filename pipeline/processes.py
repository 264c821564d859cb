"""Training on several devices of this machine: one process for each, started by the stage.

Lightning's own launcher would start the whole command again in every process, up to the lock that
the stage holds. Here only the training is started: a process gets the paths of the inputs and the
recipe part, prepares the training as the stage does, and joins the others
(`pipeline.train_worker`).
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.recipe_parts import TrainingPart
from pipeline.stage import InputArtifact, StageContext

ROOT = Path(__file__).resolve().parent.parent
POLL = 0.2  # seconds between looks at the processes
GRACE = 10.0  # seconds that the others have to end after one has failed


@dataclass(frozen=True)
class Place:
    """Which process of how many; the defaults are those of the only one."""

    rank: int = 0
    processes: int = 1


class Files(InputArtifact):
    """An artifact as its local files by name, which can travel to another process."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = {name: Path(path) for name, path in files.items()}

    @property
    def names(self) -> list[str]:
        """Names of all files, sorted."""
        return sorted(self.files)

    def path(self, name: str) -> Path:
        """Return the local path of one file."""
        return self.files[name]

    def paths(self, pattern: str) -> list[Path]:
        """Return local paths of the files that match a glob, sorted by name."""
        return [self.files[name] for name in self.names if Path(name).match(pattern)]

    def directory(self, prefix: str) -> Path:
        """Return the local directory with all files below a prefix."""
        name = next(name for name in self.names if name.startswith(f"{prefix}/"))
        return self.files[name].parents[len(Path(name).relative_to(prefix).parts) - 1]


def run_processes(context: StageContext, stage: str, part: TrainingPart, seed: int) -> None:
    """Run a stage's training in `settings.devices` processes and wait for them.

    Raises:
        PipelineError: A process failed; the message is the one it ended with.
    """
    count = context.settings.devices
    with tempfile.TemporaryDirectory(dir=context.scratch, prefix="processes-") as name:
        folder = Path(name)
        request = {
            "stage": stage,
            "part": part.model_dump(mode="json"),
            "seed": seed,
            "inputs": {key: _files(value) for key, value in context.inputs.items()},
            "out": str(context.out.resolve()),
            "scratch": str(context.scratch.resolve()),
            "settings": context.settings.model_dump(mode="json"),
        }
        (folder / "request.json").write_text(json.dumps(request))
        variables = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(count),
        }
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "pipeline.train_worker", str(folder), str(os.getpid())],
                env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=ROOT,
            )
            for rank in range(count)
        ]
        try:
            _wait(running, folder)
        finally:
            _end(running)


def _files(artifact: InputArtifact) -> dict[str, str]:
    """Return the local paths of an artifact's files; of the pictures' bytes the first shard only.

    Training shows a few pictures to people and reads no other.
    """
    pictures = [name for name in artifact.names if Path(name).match("files-*.parquet")]
    return {
        name: str(artifact.path(name).resolve())
        for name in artifact.names
        if name not in pictures[1:]
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait(running: Sequence[subprocess.Popen[Any]], folder: Path) -> None:
    """Return when all have ended well; raise with the words of the first that has not."""
    while any(process.poll() is None for process in running):
        if any(process.poll() for process in running):
            # All may be about to say the same; the first process says it best.
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline and any(p.poll() is None for p in running):
                time.sleep(POLL)
            break
        time.sleep(POLL)
    for rank, process in enumerate(running):
        if process.poll() != 0:
            said = folder / f"error-{rank}.json"
            if said.is_file():
                raise PipelineError(json.loads(said.read_text()))
    for rank, process in enumerate(running):
        if process.poll() != 0:
            raise PipelineError(
                f"training process {rank} of {len(running)} ended with status {process.poll()}",
                "its own message is above; a killed process may have run out of memory",
            )


def _end(running: Sequence[subprocess.Popen[Any]]) -> None:
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
