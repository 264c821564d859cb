"""How fast a feature store feeds random batches, beside a numpy memmap of the same rows.

Run it from the repository root: `python tests/benchmarks/feature_feeding.py`. Both sides read the
same rows in the same order, a true global shuffle, and take turns within one run, so that other
load on the machine meets both. Goal: at least 65 % of the memmap (aim 85 %).

The size is told beside the arrays that are stored, patches in float16 and pooled embeddings in
float32: goal at most 1.01. Pooled embeddings are 2.7 % of an image's bytes, so beside the patches
alone a shard is larger than that; its patches file by itself is told, too.

With `--peers VENV`, an environment that has datasets, pylance and webdataset, these take turns too,
on the same rows (see `helpers/feeding_peers.py`). Goal: at least 2.5 times each of them.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from storage.features.patches import PatchTable
from storage.features.shards import ShardRows, shard_paths, write_shard
from tests.benchmarks.helpers.spread import ratio, spread

PATCH, WIDTH, POOLED = 49, 768, 512


def made_rows(start: int, count: int) -> ShardRows:
    rng = np.random.default_rng(start)
    return ShardRows(
        sha256=[hashlib.sha256(str(start + row).encode()).hexdigest() for row in range(count)],
        image_id=np.arange(start, start + count),
        width=np.full(count, 640, np.int32),
        height=np.full(count, 480, np.int32),
        split=["train"] * count,
        pooled=rng.standard_normal((count, POOLED), np.float32),
        patches=rng.standard_normal((count, PATCH, WIDTH), np.float32).astype(np.float16),
    )


def write_both(
    folder: Path, shards: int, count: int
) -> tuple[PatchTable, np.memmap, dict[str, float]]:
    """The store, the memmap of the same rows, and the sizes of the store per byte of arrays."""
    raw = np.lib.format.open_memmap(
        folder / "raw.npy", "w+", np.float16, (shards * count, PATCH, WIDTH)
    )
    pooled, seconds = 0, 0.0
    for number in range(shards):
        rows = made_rows(number * count, count)
        raw[number * count : (number + 1) * count] = rows.patches
        raw.flush()  # or the shard's fsync would wait for the memmap's pages too
        pooled += rows.pooled.nbytes
        began = time.perf_counter()
        write_shard(folder, number, rows, "benchmark")
        seconds += time.perf_counter() - began
    files = [shard_paths(folder, number) for number in range(shards)]
    index, patches = (sum(pair[at].stat().st_size for pair in files) for at in (0, 1))
    print(f"written       {raw.nbytes / 1e6 / seconds:6.0f} MB/s, checks and fsync included")
    return (
        PatchTable(files),
        np.load(folder / "raw.npy", mmap_mode="r"),
        {
            "both files, of patches and pooled": (index + patches) / (raw.nbytes + pooled),
            "patches file, of patches alone": patches / raw.nbytes,
            "both files, of patches alone": (index + patches) / raw.nbytes,
        },
    )


def epoch_speed(read: Callable[[np.ndarray], np.ndarray], order: np.ndarray, batch: int) -> float:
    """MB/s over one epoch in the given order."""
    total = 0
    began = time.perf_counter()
    for start in range(0, len(order), batch):
        total += read(order[start : start + batch]).nbytes
    return total / 1e6 / (time.perf_counter() - began)


class Peers:
    """The other stores, in a process of their own environment."""

    def __init__(self, python: Path, folder: Path) -> None:
        script = Path(__file__).with_name("helpers") / "feeding_peers.py"
        (folder / "peers").mkdir()
        command = [python, script, folder / "raw.npy", folder / "peers"]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.names = self._answer("ready")

    def _answer(self, word: str) -> list[str]:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith(f"{word} "):
                return line.split()[1:]
        sys.exit("the peers ended early")

    def speed(self, name: str, seed: int, batch: int) -> float:
        """MB/s over one epoch."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{name} {seed} {batch}\n")
        self._child.stdin.flush()
        return float(self._answer("speed")[0])

    def close(self) -> None:
        """End the process."""
        self._child.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rows", type=int, default=1664, help="rows per shard, 75 kB each")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peers", type=Path, help="environment with the other stores")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table, raw, sizes = write_both(Path(folder), given.shards, given.rows)
        peers = Peers(given.peers / "bin" / "python", Path(folder)) if given.peers else None
        readers = {"numpy memmap": lambda rows: raw[rows], "PatchTable": table.gather}
        speeds: dict[str, list[float]] = {name: [] for name in readers}
        for repeat in range(given.repeats + 1):
            order = np.random.default_rng(repeat).permutation(len(table))
            # Who goes first changes, since the second finds warmer caches.
            for name in sorted(readers, reverse=bool(repeat % 2)):
                speed = epoch_speed(readers[name], order, given.batch)
                if repeat:  # the first epoch fills the page tables of both
                    speeds[name].append(speed)
            for name in peers.names if peers and repeat else ():
                assert peers is not None
                speed = peers.speed(name, repeat, given.batch)
                speeds.setdefault(name, []).append(speed)
        if peers is not None:
            peers.close()
        sample = np.random.default_rng(0).permutation(len(table))[: given.batch]
        assert table.direct
        assert table.gather(sample).tobytes() == raw[sample].tobytes()
    for name, found in speeds.items():
        print(f"{name:13} {spread(found, 0)} MB/s, median of {len(found)}")
    ours = speeds.pop("PatchTable")
    for name, theirs in speeds.items():
        goal = "0.65, aim 0.85" if name == "numpy memmap" else "2.5"
        print(f"PatchTable is {ratio(ours, theirs)} times {name}; goal {goal}")
    for what, size in sizes.items():
        print(f"size          {size:6.4f}      {what}{'; goal 1.01' if 'pooled' in what else ''}")


if __name__ == "__main__":
    main()
