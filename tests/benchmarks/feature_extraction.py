"""How fast features are extracted, beside `clip-retrieval inference` and the bare forward pass.

Run it from the repository root: `python tests/benchmarks/feature_extraction.py`. All sides take the
same JPEGs, the same random weights of ViT-B/32 and the same number of threads, one after the other
in turns. A first turn on few images lets every side load its model and is not counted, so each
time is that of the work: read, decode, encode, write. Ours also writes the patches, checks them and
syncs them to disk; clip-retrieval writes pooled vectors only. Its logger is left out: it starts two
processes per call, which import everything anew, some 17 seconds that would hide what is compared.
Images are counted per second of the clock and per processor second of all processes of a side; on
a machine with other work only the latter say something. With `--device cuda` only the former do.

Goals: 1.3 times clip-retrieval and 92 % of the bare forward pass in fp32; in bf16 three times
clip-retrieval's fp32, on a CPU with instructions for it. clip-retrieval comes from --peer, an
environment of its own, or is installed by uv into a folder that is removed afterwards. At the end,
how close bf16 comes to fp32: of the random ViT-B/32, and of EfficientNet-Lite0 where `make photos`
has put it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from model.decoding import decode_image
from model.encoder import PatchEncoder
from pipeline.data.stored_images import NO_LIMIT
from pipeline.engine.kept_memory import kept_memory
from pipeline.features.extraction import make_shards, open_encoder
from storage.features.shards import verify_shard
from tests.benchmarks.helpers.extraction_inputs import Inputs, add_options
from tests.benchmarks.helpers.spread import spread

PEER = """
import resource, sys, time
from clip_retrieval.clip_inference import main, worker

class Silent:
    def __init__(self, *_, **__):
        self.done = 0
        loggers.append(self)
    def __call__(self, stats):
        self.done += stats["sample_count"]
    def start(self): pass
    def end(self): pass

worker.LoggerWriter = main.LoggerReader = Silent
loggers = []

def processor_seconds():
    spent = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)

if __name__ == "__main__":
    for line in sys.stdin:
        images, out, weights, batch = line.split()
        clock, processor = time.perf_counter(), processor_seconds()
        loggers.clear()
        main.main(images, out, batch_size=int(batch), num_prepro_workers=1, enable_text=False,
             clip_model=f"open_clip:ViT-B-32/{weights}")
        clock, processor = time.perf_counter() - clock, processor_seconds() - processor
        print("seconds", clock, processor, sum(each.done for each in loggers), flush=True)
"""


CLIP_RETRIEVAL = "clip-retrieval, fp32"
GOALS = (
    ("extraction, fp32", CLIP_RETRIEVAL, 1.3),
    ("extraction, bf16", CLIP_RETRIEVAL, 3.0),
    ("extraction, fp32", "bare forward, fp32", 0.92),
    ("extraction, bf16", "bare forward, bf16", 0.92),
)
LITE = Path(__file__).resolve().parents[2] / ".weights/tf_efficientnet_lite0"


class Took(NamedTuple):
    """Seconds of the clock and of the processor, and for how many images."""

    clock: float
    processor: float
    images: int

    def rate(self, device: str) -> float:
        """Images a second: of the processor, where it does the work."""
        return self.images / (self.processor if device == "cpu" else self.clock)


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
        script = folder / "peer.py"  # its reader starts a process, which must find a file
        script.write_text(PEER)
        threads = str(inputs.given.threads)
        self.child = subprocess.Popen(
            [environment / "bin" / "python", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=(folder / "peer.log").open("w"), text=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    def infer(self, images: Path, count: int) -> Took:
        """Return what a whole call took."""
        self.turn += 1
        out = self.folder / f"peer-{self.turn}"
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        parts = [images, out, self.inputs.weights, self.inputs.given.batch]
        self.child.stdin.write(" ".join(map(str, parts)) + "\n")
        self.child.stdin.flush()
        for line in self.child.stdout:
            if line.startswith("seconds "):
                clock, processor, done = map(float, line.split()[1:])
                assert done == count
                return Took(clock, processor, count)
        sys.exit((self.folder / "peer.log").read_text()[-2000:])


def timed(work: Callable[[], object], images: int) -> Took:
    """Return what a call in this process took."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - clock, time.process_time() - processor, images)


def ours(
    inputs: Inputs, folder: Path, precision: str, size: int, shards: int | None = None
) -> Took:
    """Return what it takes to make shards, whole and checked."""
    extraction = inputs.extraction(folder, inputs.given.threads, precision)
    jobs = inputs.jobs(size)[:shards]
    open_encoder(extraction)  # the stage, too, has loaded it before it starts
    took = timed(lambda: make_shards(extraction, jobs, lambda _: None), inputs.given.images)
    for job in jobs:
        verify_shard(folder, job.number)
    shutil.rmtree(folder)
    return took


def bare(inputs: Inputs, folder: Path, precision: str) -> Took:
    """Return what the forward pass alone takes, on tensors that are ready."""
    given = inputs.given
    encoder = open_encoder(inputs.extraction(folder, given.threads, precision))
    pixels = torch.randn(given.batch, 3, 224, 224, device=given.device)

    def forward() -> None:
        for start in range(0, given.images, given.batch):
            encoded = encoder.encode(pixels[: given.images - start])
        encoded.pooled.cpu()  # waits until a GPU has done all of it

    with kept_memory(given.device):  # as `make_shards` does: the limit has it, too
        return timed(forward, given.images)


def main() -> None:
    """Print the rate of each side, ours as a ratio of each, and how close bf16 comes to fp32."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peer", type=Path, help="environment that has clip-retrieval")
    parser.add_argument("--shard", type=int, help="images per shard; all if omitted")
    add_options(parser, images=64)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
        folder = Path(name)
        inputs, shards = Inputs(folder, given), folder / "shards"
        environment = given.peer or install_peer(folder)
        peer = Peer(environment, inputs, folder) if environment else None
        sides: dict[str, Callable[[], Took]] = {}
        if peer is not None:
            sides[CLIP_RETRIEVAL] = partial(peer.infer, inputs.jpegs, given.images)
        for precision in ("fp32", "bf16"):
            size = given.shard or given.images
            sides[f"extraction, {precision}"] = partial(ours, inputs, shards, precision, size)
            sides[f"bare forward, {precision}"] = partial(bare, inputs, shards, precision)
        took = run_turns(inputs, shards, peer, sides)
        report(took, given.device)
        if peer is None:
            print("no clip-retrieval: give its environment with --peer, or put uv on the PATH")
        closeness(inputs)


def run_turns(
    inputs: Inputs, folder: Path, peer: Peer | None, sides: Mapping[str, Callable[[], Took]]
) -> dict[str, list[Took]]:
    """Run the sides in turns, every second turn backwards, after a warm-up on one batch."""
    batch = inputs.given.batch
    ours(inputs, folder, "fp32", batch, shards=1)
    if peer is not None:
        peer.infer(inputs.few(batch), batch)
    took: dict[str, list[Took]] = {}
    for turn in range(inputs.given.repeats):
        for name in sorted(sides, reverse=bool(turn % 2)):
            each = sides[name]()
            took.setdefault(name, []).append(each)
            print(f"  {name}: {each.rate(inputs.given.device):.2f} images/s", flush=True)
    return took


def report(took: Mapping[str, Sequence[Took]], device: str) -> None:
    """Print the rate of each side, and the ratios that have goals, turn by turn."""
    for name, each in took.items():
        by_processor = spread([one.images / one.processor for one in each])
        clock = spread([one.images / one.clock for one in each])
        print(f"{name:30} {by_processor} images per processor second; by the clock {clock}")
    for side, against, goal in GOALS:
        if side in took and against in took:
            pairs = zip(took[side], took[against], strict=True)
            ratios = [o.rate(device) / t.rate(device) for o, t in pairs]
            by = "in processor time" if device == "cpu" else "by the clock"
            print(f"{side} is {spread(ratios, 3)} times {against}, {by}; goal {goal}")


def closeness(inputs: Inputs) -> None:
    """Print the cosine of features in bf16 to those in fp32, over one batch of images."""
    files = sorted(inputs.jpegs.iterdir())[: inputs.given.batch]
    images = [decode_image(path.read_bytes(), NO_LIMIT) for path in files]
    for name, folder in (("ViT-B/32, random", inputs.clip), ("EfficientNet-Lite0", LITE)):
        if not folder.is_dir():
            continue
        single, half = (
            PatchEncoder(folder, -1, precision=precision).encode_images(images)
            for precision in ("fp32", "bf16")
        )
        for part in ("pooled", "patches"):
            cosines = torch.nn.functional.cosine_similarity(
                getattr(half, part), getattr(single, part), dim=-1
            ).flatten()
            low, middle = cosines.min().item(), cosines.median().item()
            print(f"{name}: cosine of {part} {middle:.6f} in the median, {low:.6f} at least")


if __name__ == "__main__":
    main()
