"""Training on several devices: one process for each, started by the stage or by a launcher.

Lightning's own launcher would start the whole command again in every process, which would block on
the lock that the stage holds. Here only the training is started: a process gets the paths of the
inputs and the recipe part, prepares the training as the stage does, and joins the others
(`pipeline.training.worker`). The stage starts the processes of one machine itself; those of several
are started by torchrun, as `settings.launcher` says, and all machines must see the work folder.
"""

import json
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engine.stage import InputArtifact, StageContext
from pipeline.errors import PipelineError
from pipeline.interpreter import ROOT, child_environment
from pipeline.recipe.parts import TrainingPart
from pipeline.settings import Settings

WORKER = "pipeline.training.worker"
POLL = 0.2  # seconds between checks of the processes
GRACE = 10.0  # seconds that the others have to end after one has failed


@dataclass(frozen=True)
class World:
    """Rank and world size of a process; the defaults are those of a single process.

    Attributes:
        rank: Number of this process among all.
        size: World size: all processes, on all machines.
        nodes: Machines, all with the same number of processes.
    """

    rank: int = 0
    size: int = 1
    nodes: int = 1


class Files(InputArtifact):
    """An artifact as its local files by name, which can be passed to another process."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = {name: Path(path) for name, path in files.items()}

    @property
    def names(self) -> list[str]:
        """Names of all files, sorted."""
        return sorted(self.files)

    @property
    def packages(self) -> Mapping[str, str]:
        """Versions of libraries, which nobody asks of inputs."""
        return {}

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


def files_of(artifact: InputArtifact, names: Iterable[str]) -> Files:
    """Return some files of an artifact in a form that can be sent to other processes.

    Raises:
        StorageError: One is not there, or damaged.
    """
    return Files({name: str(artifact.path(name).resolve()) for name in names})


def run_processes(context: StageContext, stage: str, part: TrainingPart, seed: int) -> None:
    """Run a stage's training in several processes and wait for them.

    Raises:
        PipelineError: A process failed; the message is its own. Or the launcher cannot be
            started.
    """
    with tempfile.TemporaryDirectory(dir=context.scratch, prefix="processes-") as name:
        folder = Path(name).resolve()
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
        running = _started(context.settings, folder)
        try:
            _wait(running, folder)
        finally:
            _end(running)


def _started(settings: Settings, folder: Path) -> list[subprocess.Popen[Any]]:
    """Return the started processes: all of this machine, or the launcher that starts them.

    Their standard input is a pipe without data. It closes when this process ends, killed or not,
    and then they end, too: a launcher passes it on, even to other machines.
    """
    worker = ["-m", WORKER, str(folder)]
    if settings.launcher:
        command = [*shlex.split(settings.launcher), *worker]
        try:
            environment = child_environment()
            return [subprocess.Popen(command, env=environment, cwd=ROOT, stdin=subprocess.PIPE)]
        except OSError as error:
            raise PipelineError(
                f"the launcher {command[0]} cannot be started: {error.strerror}",
                "PHIVISION_LAUNCHER is a torchrun command, e.g. torchrun --nproc-per-node 2",
            ) from error
    count = str(settings.devices)
    shared = {
        **child_environment(),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, *worker],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdin=subprocess.PIPE,
        )
        for rank in range(settings.devices)
    ]


def _files(artifact: InputArtifact) -> dict[str, str]:
    """Return the local paths of an artifact's files, but only the first shard of images.

    Training shows a few images to users and reads no others.
    """
    images = [name for name in artifact.names if Path(name).match("files-*.parquet")]
    return {
        name: str(artifact.path(name).resolve())
        for name in artifact.names
        if name not in images[1:]
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(running: Sequence[subprocess.Popen[Any]], folder: Path) -> None:
    """Wait until all have succeeded; on a failure raise with the most specific message."""
    while any(process.poll() is None for process in running):
        if any(process.poll() for process in running):
            # The others may be about to fail with a more specific message.
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline and any(p.poll() is None for p in running):
                time.sleep(POLL)
            break
        time.sleep(POLL)
    failed = [rank for rank, process in enumerate(running) if process.poll() != 0]
    if not failed:
        return
    said = [json.loads(path.read_text()) for path in sorted(folder.glob("error-*.json"))]
    if said:
        # A non-finite loss on one device makes the gradients of all non-finite; the others would
        # blame the wrong examples.
        first = min(said, key=lambda failure: failure["hearsay"])
        raise PipelineError(first["message"], first["remedy"])
    rank = failed[0]
    name = "the launcher" if len(running) == 1 else f"training process {rank} of {len(running)}"
    raise PipelineError(
        f"{name} ended with status {running[rank].poll()}",
        "its own message is above; a killed process may have run out of memory",
    )


def _end(running: Sequence[subprocess.Popen[Any]]) -> None:
    """End the running processes by closing their standard input; kill those that do not react."""
    for process in running:
        assert process.stdin is not None
        process.stdin.close()
    for process in running:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
