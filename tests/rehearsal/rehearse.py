"""The preset `coco` at the real size, without the real weights: `make rehearsal`.

Phi-2 and CLIP ViT-B/32 have their published layouts and random weights, in a Hub cache that is
read without a network; images and conversations are real ones ($PHIVISION_REALDATA). The preset
is the published one; only the numbers of images, steps and written tokens are small. Finetuning
is killed after its first step and taken up again. At the end it prints for every stage and command
the seconds and the memory of all its processes, beside what `plan --hardware` says, and fails
where they held more than 16 GB. Pages of mapped files are shown but not judged: the kernel takes
them back when it needs room.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.engine.dag import BY_NAME
from pipeline.recipe.presets import preset
from storage.store.objects import ObjectFiles
from tests.rehearsal.hub_cache import PHI_2, write_clip, write_phi
from tests.rehearsal.process_tree import Held, Watch

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 16e9  # bytes
NOT_PUBLISHED = 3
QUESTION = "What is in the image?"
PLANNED = {"pretrain": "pretrain", "finetune": "finetune LoRA", "evaluate": "evaluate"}
# What a run costs in time: images, rows of a step, steps, tokens written. All else is the preset.
FEW: Mapping[str, object] = {
    "images.limit": 110,
    "images.test_limit": 4,
    "images.validation_share": 0.3,
    "pretrain.batch": 24,
    "pretrain.epochs": 0.34,
    "pretrain.validate_every": 1,
    "pretrain.validation_examples": 8,
    "finetune.batch": 8,
    "finetune.epochs": 2,
    "finetune.validate_every": 1,
    "finetune.validation_examples": 4,
    "evaluate.images": 4,
    "evaluate.questions": 4,
    "evaluate.max_new_tokens": 8,
    "evaluate.likelihood_images": 2,
    "evaluate.pointing_images": 1,
    "evaluate.choices": 2,
    "evaluate.presence_objects": 1,
}
SMALL = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}


@dataclass
class Line:
    """One line of the table."""

    name: str
    seconds: float
    held: Held


@dataclass
class Rehearsal:
    """Runs commands of phivision and remembers what they took.

    Attributes:
        folder: Where everything is written.
        environment: Variables of the commands.
        changes: The recipe's, as arguments.
        lines: What was measured so far.
    """

    folder: Path
    environment: dict[str, str]
    changes: list[str]
    lines: list[Line] = field(default_factory=list)

    @property
    def store(self) -> Path:
        """The local store."""
        return self.folder / "store"

    @contextmanager
    def started(
        self, *arguments: str, store: str = ""
    ) -> Generator[tuple[subprocess.Popen[str], Watch]]:
        """Yield a running command and the watch on its memory; it is gone afterwards."""
        print(f"$ phivision {' '.join(arguments)}", flush=True)
        environment = {**self.environment, "PHIVISION_STORE": store or str(self.store)}
        running = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a kill reaches all its processes
        )
        watch = Watch(running.pid)
        try:
            yield running, watch
        finally:
            watch.end()
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()

    def command(
        self, name: str, *arguments: str, store: str = "", fine: Sequence[int] = (0,)
    ) -> str:
        """Run a command to its end, add its line and return what it printed."""
        start = time.monotonic()
        with self.started(*arguments, store=store) as (running, watch):
            text = running.communicate()[0]
            self._add(name, start, watch)
        print(text, flush=True)
        if running.returncode not in fine:
            raise SystemExit(f"{name} ended with status {running.returncode}")
        return text

    def run(self, *, kill_in: str = "") -> None:
        """Run the pipeline, with a line for each stage that is made.

        Args:
            kill_in: A stage that is killed when it has a checkpoint.
        """
        start = time.monotonic()
        with self.started("run", "--preset", "coco", *self.changes) as (running, watch):
            pattern = f"work/workspaces/{kill_in}-*/scratch/checkpoints/last.ckpt"
            if kill_in:
                self._kill_at(pattern, running)
            assert running.stdout is not None
            for line in running.stdout:
                print(line, end="", flush=True)
                words = [*line.split(), "", ""]
                if words[0] in BY_NAME:
                    if words[1] == "made":
                        self._add(words[0], start, watch)
                    start = time.monotonic()
            running.wait()
            self._add(f"{kill_in}, killed" if kill_in else "after the stages", start, watch)
        expected = -signal.SIGKILL if kill_in else 0
        if running.returncode != expected:
            raise SystemExit(f"run ended with {running.returncode} instead of {expected}")

    def _kill_at(self, pattern: str, running: subprocess.Popen[str]) -> None:
        def wait() -> None:
            while running.poll() is None and not list(self.store.glob(pattern)):
                time.sleep(0.2)
            if running.poll() is None:
                print("killed", flush=True)
                os.killpg(running.pid, signal.SIGKILL)

        threading.Thread(target=wait, daemon=True).start()

    def _add(self, name: str, start: float, watch: Watch) -> None:
        line = Line(name, time.monotonic() - start, watch.take())
        self.lines.append(line)
        own, resident = (value / 1e9 for value in line.held)
        print(f"  {name}: {line.seconds:.0f} s, {own:.2f} GB, {resident:.2f} GB with mapped files")

    def planned(self) -> dict[str, float]:
        """Return what `plan --hardware` says in GB, by the names of the table."""
        arguments = ["plan", "--preset", "coco", *self.changes, "--hardware", "16GB"]
        with self.started(*arguments, "--format", "json") as (running, _):
            rows = json.loads(running.communicate()[0])
        found = {row["training"]: row["total"] for row in rows if row["in_recipe"]}
        named = {name: found[planned] for name, planned in PLANNED.items()}
        return {**named, "finetune, killed": named["finetune"], "ask": found["chat"]}


def rehearse(folder: Path, hub: Path | None, realdata: Path, *, small: bool) -> None:
    """Do everything in a folder and print the table.

    Args:
        folder: An empty folder.
        hub: A Hub cache that has both models; None: one is written.
        realdata: Real images, conversations and tokenizers.
        small: Whether a written language model is a small one.

    Raises:
        SystemExit: A command failed, or its processes held too much.
    """
    cache = folder / "hub" if hub is None else hub.resolve()
    if hub is None:
        write_backbones(cache, realdata, small=small)
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "PHIVISION_WANDB": "disabled",
        "PHIVISION_PUBLISH_ANYWAY": "true",  # random weights do not look at images
        "PREFECT_HOME": str(folder / "prefect"),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }
    rehearsal = Rehearsal(folder, environment, changes(realdata))
    planned = rehearsal.planned()
    rehearsal.run(kill_in="finetune")
    rehearsal.run()
    photo = str(next(iter(sorted((realdata / "coco" / "val2017").glob("*.jpg")))))
    rehearsal.command("ask", "ask", photo, QUESTION)
    exported = folder / "exported"
    rehearsal.command("export", "export", str(exported))
    rehearsal.command("ask the export", "ask", photo, QUESTION, "--bundle", str(exported))
    shutil.rmtree(exported)
    rehearsal.command("verify", "verify")
    rehearsal.command("gc", "gc")
    on_s3(rehearsal, photo)
    finish(rehearsal.lines, planned)


def write_backbones(hub: Path, realdata: Path, *, small: bool) -> None:
    """Write both backbones into a Hub cache."""
    choice = preset("coco").backbones.model_dump()
    tokenizer = realdata / "tokenizers" / "codegen_rebuilt"
    config = {**PHI_2, **SMALL} if small else PHI_2
    count = write_phi(hub, choice["lm_repository"], choice["lm_revision"], tokenizer, config)
    write_clip(hub, choice["clip_name"], choice["clip_pretrained"])
    print(f"a language model of {count:,} parameters is in {hub}", flush=True)


def changes(realdata: Path) -> list[str]:
    """Return the changes of the preset as arguments."""
    sources: dict[str, object] = {
        "images.source.kind": "folder",
        "images.source.root": realdata / "coco",
        "conversations.source.kind": "file",
        "conversations.source.path": realdata / "instruct" / "llava_instruct_subset.json",
        "conversations.source.sha256": "null",
    }
    both = {**sources, **FEW}
    return [part for name, value in both.items() for part in ("--set", f"{name}={value}")]


def on_s3(rehearsal: Rehearsal, photo: str) -> None:
    """Put the whole store on an S3 server, and use it there as another machine would."""
    objects = rehearsal.folder / "s3"
    objects.mkdir(exist_ok=True)
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("disk_s3.py")), str(objects)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **keys},
    )
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        place = {**keys, "AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ.update(place)
        there = "s3://rehearsal/store"
        start = time.monotonic()
        watch = Watch(os.getpid())
        put_all(rehearsal.store, there)
        watch.end()
        rehearsal._add("S3: upload", start, watch)
        shutil.rmtree(rehearsal.store)
        rehearsal.environment |= {**place, "PHIVISION_WORKDIR": str(rehearsal.folder / "work")}
        run = ["run", "--preset", "coco", *rehearsal.changes]
        text = rehearsal.command("S3: run, all cached", *run, store=there)
        assert "nothing to do" in text
        rehearsal.command("S3: ask", "ask", photo, QUESTION, store=there)
        rehearsal.command("S3: verify", "verify", store=there)
        rehearsal.command("S3: gc", "gc", store=there)
    finally:
        server.kill()
        server.wait()


def put_all(store: Path, uri: str) -> None:
    """Upload a store's objects with the store's own upload, which cuts large files into parts."""
    import s3fs

    s3fs.S3FileSystem().mkdir("rehearsal")
    files = ObjectFiles(uri)
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        name = path.relative_to(store).as_posix()
        if not name.startswith("work/"):
            files.put(path, name)


def finish(lines: Sequence[Line], planned: Mapping[str, float]) -> None:
    """Print the table.

    Raises:
        SystemExit: Something held too much.
    """
    print("\n| | seconds | GB held | with mapped files | GB planned |\n|---|--:|--:|--:|--:|")
    for line in lines:
        own, resident = (f"{value / 1e9:.1f}" for value in line.held)
        plan = planned.get(line.name)
        shown = "" if plan is None else f"{plan:.1f}"
        print(f"| {line.name} | {line.seconds:,.0f} | {own} | {resident} | {shown} |")
    most = max(lines, key=lambda line: line.held.own)
    if most.held.own > LIMIT:
        raise SystemExit(f"{most.name} held {most.held.own / 1e9:.1f} GB")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where 45 GB are free; removed at the end")
    parser.add_argument("--hub", type=Path, help="a Hub cache that has both models already")
    parser.add_argument("--small", action="store_true", help="a small Phi, to try the script")
    given = parser.parse_args()
    realdata = os.environ.get("PHIVISION_REALDATA")
    if not realdata:
        raise SystemExit("PHIVISION_REALDATA names no folder with real COCO and LLaVA data")
    with tempfile.TemporaryDirectory(prefix="phivision-rehearsal-", dir=given.folder) as folder:
        rehearse(Path(folder), given.hub, Path(realdata), small=given.small)


if __name__ == "__main__":
    main()
