"""How fast features are extracted, beside `clip-retrieval inference` and the bare forward pass.

Run it from the repository root: `python tests/benchmarks/feature_extraction.py`. All sides take the
same JPEGs, the same random weights of ViT-B/32 and the same number of threads, one after the other
in turns. A first turn on few images lets every side load its model and is not counted, so each
time is that of the work: read, decode, encode, write. Ours also writes the patches, checks them and
syncs them to disk; clip-retrieval writes pooled vectors only. It is told twice: a whole call, and
its own sum over batches, which leaves out what it starts and ends once per call.
Goals: 1.3 times clip-retrieval, 92 % of the bare forward pass on ready tensors.

clip-retrieval comes from --peer, an environment of its own, or is installed by uv into a folder
that is removed afterwards.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from pipeline.features.extraction import make_shards, open_encoder
from storage.features.shards import verify_shard
from tests.benchmarks.helpers.extraction_inputs import Inputs, add_options

PEER = """
import json, pathlib, sys, time
from clip_retrieval.clip_inference.main import main
if __name__ == "__main__":
    for line in sys.stdin:
        images, out, weights, batch = line.split()
        began = time.perf_counter()
        main(images, out, batch_size=int(batch), num_prepro_workers=1, enable_text=False,
             clip_model=f"open_clip:ViT-B-32/{weights}")
        whole = time.perf_counter() - began
        told = json.loads(pathlib.Path(out, "stats", "0.json").read_text())
        print()  # its logger leaves a line without an end in this pipe
        print("seconds", whole, told["total_duration"], told["sample_count"], flush=True)
"""


def install_peer(folder: Path) -> Path | None:
    """Return an environment with clip-retrieval, or None where uv is missing or finds none."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        return None
    for command in (
        ["venv", "-q", "peer"],
        # Its CLIP asks setuptools for pkg_resources, which newer ones do not have.
        ["pip", "install", "-q", "-p", "peer", "clip-retrieval", "setuptools<81"],
    ):
        if subprocess.run([uv, *command], cwd=folder, check=False).returncode:
            return None
    return folder / "peer"


class Peer:
    """clip-retrieval in a process of its own, whose imports are not counted."""

    def __init__(self, environment: Path, inputs: Inputs, folder: Path) -> None:
        self.inputs, self.folder, self.turn = inputs, folder, 0
        script = folder / "peer.py"  # its logger starts a process, which must find a file
        script.write_text(PEER)
        threads = str(inputs.given.threads)
        self.child = subprocess.Popen(
            [environment / "bin" / "python", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=(folder / "peer.log").open("w"), text=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    def infer(self, images: Path, count: int) -> tuple[float, float]:
        """Return the seconds of a whole call, and those it counts for its batches."""
        self.turn += 1
        out = self.folder / f"peer-{self.turn}"
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        parts = [images, out, self.inputs.weights, self.inputs.given.batch]
        self.child.stdin.write(" ".join(map(str, parts)) + "\n")
        self.child.stdin.flush()
        for line in self.child.stdout:
            if line.startswith("seconds "):
                whole, batches, done = map(float, line.split()[1:])
                assert done == count
                return whole, batches
        sys.exit((self.folder / "peer.log").read_text()[-2000:])


def ours(inputs: Inputs, folder: Path, size: int, shards: int | None = None) -> float:
    """Return the seconds in which shards are made, whole and checked."""
    extraction, jobs = inputs.extraction(folder, inputs.given.threads), inputs.jobs(size)[:shards]
    open_encoder(extraction)  # the stage, too, has loaded it before it starts
    began = time.perf_counter()
    make_shards(extraction, jobs, lambda _: None)
    seconds = time.perf_counter() - began
    for job in jobs:
        verify_shard(folder, job.number)
    shutil.rmtree(folder)
    return seconds


def bare(inputs: Inputs, folder: Path) -> float:
    """Return the seconds of the forward pass alone, on tensors that are ready."""
    given = inputs.given
    encoder = open_encoder(inputs.extraction(folder, given.threads))
    pixels = torch.randn(given.batch, 3, 224, 224)
    began = time.perf_counter()
    for start in range(0, given.images, given.batch):
        encoder.encode(pixels[: given.images - start])
    return time.perf_counter() - began


def main() -> None:
    """Print the rate of each side, and ours as a ratio of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peer", type=Path, help="environment that has clip-retrieval")
    parser.add_argument("--shard", type=int, help="images per shard; all if omitted")
    add_options(parser, images=256)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
        folder = Path(name)
        inputs, shards = Inputs(folder, given), folder / "shards"
        environment = given.peer or install_peer(folder)
        peer = Peer(environment, inputs, folder) if environment else None
        took: dict[str, list[float]] = {}
        for turn in range(given.repeats):
            if not turn:
                warm_up(inputs, shards, peer)
            names = ["extraction", "bare forward", *(["clip-retrieval"] if peer else [])]
            for side in sorted(names, reverse=bool(turn % 2)):
                if side == "extraction":
                    found = {side: ours(inputs, shards, given.shard or given.images)}
                elif side == "bare forward":
                    found = {side: bare(inputs, shards)}
                elif peer:
                    whole, batches = peer.infer(inputs.jpegs, given.images)
                    found = {side: whole, "its batches": batches}
                for key, seconds in found.items():
                    took.setdefault(key, []).append(seconds)
                    print(f"  {key}: {given.images / seconds:.2f} images/s", flush=True)
    report(took, given.images)
    if peer is None:
        print("no clip-retrieval: give its environment with --peer, or put uv on the PATH")


def warm_up(inputs: Inputs, folder: Path, peer: Peer | None) -> None:
    """Let every side load its model and compute one batch."""
    batch = inputs.given.batch
    ours(inputs, folder, batch, shards=1)
    if peer is not None:
        few = inputs.jpegs.with_name("few")
        few.mkdir()
        for path in sorted(inputs.jpegs.iterdir())[:batch]:
            shutil.copy(path, few)
        peer.infer(few, min(batch, inputs.given.images))


def report(took: Mapping[str, Sequence[float]], images: int) -> None:
    """Print the rate of each side and ours as a ratio of each, turn by turn."""
    for name, seconds in took.items():
        rates = [images / each for each in seconds]
        ratios = [s / o for s, o in zip(seconds, took["extraction"], strict=True)]
        line = f"{name:15} {statistics.median(rates):7.2f} images/s"
        line += f" ({min(rates):.2f} to {max(rates):.2f})"
        if name != "extraction":
            line += f"; extraction is {statistics.median(ratios):.3f} times that"
            line += f" ({min(ratios):.3f} to {max(ratios):.3f})"
        print(line)


if __name__ == "__main__":
    main()
