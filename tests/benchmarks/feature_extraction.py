"""How fast features are extracted, beside `clip-retrieval inference` and the bare forward pass.

Run it from the repository root: `python tests/benchmarks/feature_extraction.py --peer VENV`, where
VENV is an environment of its own with clip-retrieval. The same JPEGs, the same random weights of
ViT-B/32 and the same number of threads; the sides take turns. Each time covers a whole call with
the loading of the model, but no imports. Ours also writes patches, the peer pooled vectors only.
Goals: 1.3 times the peer, 92 % of the bare forward pass on ready tensors.

`--dask N` instead compares one process with N Dask workers, model loading excluded for neither.
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

# A file run by its path finds only its own folder; the rooms lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flows.fan_out import fan_out
from model.encoder import save_clip
from pipeline.extraction import Extraction, ShardJob, make_shard, make_shards, open_encoder
from pipeline.schemas import IMAGE_FILES
from storage.shards import shard_paths
from storage.tables import write_table

NAME = "ViT-B-32"
PEER = """
import sys, time
from clip_retrieval.clip_inference.main import main
for line in sys.stdin:
    pictures, out, weights, batch, workers = line.split()
    began = time.perf_counter()
    main(pictures, out, batch_size=int(batch), num_prepro_workers=int(workers), enable_text=False,
         clip_model=f"open_clip:ViT-B-32/{weights}")
    print("seconds", time.perf_counter() - began, flush=True)
"""


def made_pictures(count: int) -> Iterable[bytes]:
    """Yield JPEGs of COCO's usual size, smooth with some noise."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(smooth + rng.integers(-12, 12, smooth.shape), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=90)
        yield stream.getvalue()


class Bench:
    """The pictures and weights in a folder, in the form that each side takes."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self.given, self.turn = folder, given, 0
        torch.manual_seed(0)
        clip, config = open_clip.create_model(NAME), open_clip.get_model_config(NAME)
        assert config is not None
        save_clip(clip, config, folder / "clip")
        save_file(clip.state_dict(), folder / "weights.safetensors")
        found = sorted(given.pictures.glob("*.jpg")) if given.pictures else []
        data = [path.read_bytes() for path in found[: given.images]]
        data += made_pictures(given.images - len(data))
        (folder / "jpeg").mkdir()
        for number, each in enumerate(data):
            (folder / "jpeg" / f"{number:06d}.jpg").write_bytes(each)
        keys = [hashlib.sha256(each).hexdigest() for each in data]
        rows = [{"sha256": k, "data": d} for k, d in zip(keys, data, strict=True)]
        write_table(folder / "files.parquet", rows, IMAGE_FILES)
        size = given.shard or given.images
        shards = enumerate(range(0, len(keys), size))
        self.jobs = [self.job(number, keys[at : at + size], at) for number, at in shards]

    def job(self, number: int, keys: list[str], start: int) -> ShardJob:
        common = {"image_id": 0, "width": 640, "height": 480, "split": "train"}
        files = {key: (self.folder / "files.parquet", start + at) for at, key in enumerate(keys)}
        return ShardJob(number, [common | {"sha256": key} for key in keys], {}, files)

    def extraction(self) -> Extraction:
        self.turn += 1
        return Extraction(
            self.folder / "clip", -1, self.given.batch, 49, "cpu", self.given.threads,
            self.folder / f"shards-{self.turn}",
        )  # fmt: skip

    def ours(self) -> float:
        open_encoder.cache_clear()
        began = time.perf_counter()
        extraction = self.extraction()
        make_shards(extraction, self.jobs, lambda _: None)
        seconds = time.perf_counter() - began
        assert all(shard_paths(extraction.folder, job.number)[0].is_file() for job in self.jobs)
        return seconds

    def spread(self) -> float:
        run = fan_out(f"dask:{self.given.dask}")
        assert run is not None
        began = time.perf_counter()
        assert sum(run(partial(make_shard, self.extraction()), self.jobs)) == self.given.images
        return time.perf_counter() - began

    def bare(self) -> float:
        """Seconds of the forward pass alone, on tensors that are ready."""
        encoder = open_encoder(self.extraction())
        pixels = torch.randn(self.given.batch, 3, 224, 224)
        began = time.perf_counter()
        for start in range(0, self.given.images, self.given.batch):
            encoder.encode(pixels[: self.given.images - start])
        return time.perf_counter() - began

    def peer(self, python: Path) -> Callable[[], float]:
        """Start clip-retrieval, whose imports are then not counted, and return how to time it."""
        child = subprocess.Popen(
            [python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=(self.folder / "peer.log").open("w"), text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(self.given.threads), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

        def turn() -> float:
            self.turn += 1
            assert child.stdin is not None
            assert child.stdout is not None
            parts = [self.folder / "jpeg", self.folder / f"peer-{self.turn}",
                     self.folder / "weights.safetensors", self.given.batch, 1]  # fmt: skip
            child.stdin.write(" ".join(map(str, parts)) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                if line.startswith("seconds "):
                    return float(line.split()[1])
            sys.exit((self.folder / "peer.log").read_text()[-2000:])

        return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, help="environment that has clip-retrieval")
    parser.add_argument("--pictures", type=Path, help="folder of JPEGs; others are made")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--shard", type=int, help="images per shard; all if omitted")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dask", type=int, default=0, help="workers to compare with one process")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given)
        sides: dict[str, Callable[[], float]] = {"extraction": bench.ours}
        if given.dask:
            sides[f"{given.dask} Dask workers"] = bench.spread
        else:
            sides["bare forward"] = bench.bare
        if given.peer:
            sides["clip-retrieval"] = bench.peer(given.peer / "bin" / "python")
        took: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(given.repeats):
            for name in sorted(sides, reverse=bool(repeat % 2)):
                took[name].append(sides[name]())
                print(f"  {name}: {given.images / took[name][-1]:.2f} images/s", flush=True)
    report(took, given.images)


def report(took: dict[str, list[float]], images: int) -> None:
    """Print the rate of each side and ours as a ratio of each, repeat by repeat."""
    ours = took["extraction"]
    for name, seconds in took.items():
        rates = [images / each for each in seconds]
        ratio = statistics.median(s / o for s, o in zip(seconds, ours, strict=True))
        spread = f"{min(rates):.2f} to {max(rates):.2f}"
        print(f"{name:16} {statistics.median(rates):7.2f} images/s ({spread})  ours is {ratio:.3f}")
    print(json.dumps(took))


if __name__ == "__main__":
    main()
