"""How long SQL over the features of 40,000 images takes, in `phivision sql`'s database.

Run it from the repository root: `python tests/benchmarks/feature_sql.py`. The index files are made
of random numbers. Beside each statement stands the same work by numpy on arrays in memory. Goals:
`GROUP BY split` under 0.2 s, the ten most similar images under 1 s.
"""

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

# A file run by its path finds only its own folder; the rooms lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from storage.shards import ShardRows, shard_paths, write_shard
from storage.sql import Database

POOLED, SHARD = 512, 2048
GROUP = "SELECT split, count(*) AS images FROM features GROUP BY split ORDER BY split"
SIMILAR = """
    SELECT sha256, array_cosine_similarity(pooled::FLOAT[512], $like::FLOAT[512]) AS likeness
    FROM features ORDER BY likeness DESC LIMIT 10
"""


def write_index(folder: Path, count: int) -> tuple[np.ndarray, list[str]]:
    """Write shards with tiny patches and return their pooled embeddings and splits."""
    pooled, splits = [], []
    for number, start in enumerate(range(0, count, SHARD)):
        rng, size = np.random.default_rng(number), min(SHARD, count - start)
        rows = ShardRows(
            sha256=[hashlib.sha256(str(start + row).encode()).hexdigest() for row in range(size)],
            image_id=np.arange(start, start + size),
            width=np.full(size, 640, np.int32),
            height=np.full(size, 480, np.int32),
            split=[("train", "validation", "test")[row % 3] for row in range(size)],
            pooled=rng.standard_normal((size, POOLED), np.float32),
            patches=rng.standard_normal((size, 1, 2), np.float32).astype(np.float16),
        )
        write_shard(folder, number, rows, "benchmark")
        pooled.append(rows.pooled)
        splits += rows.split
    return np.concatenate(pooled), splits


def median_of(call: Callable[[], object], repeats: int) -> float:
    """Return the median of a call's seconds."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pooled, splits = write_index(Path(folder), given.images)
        shards = range(-(-given.images // SHARD))
        paths = [shard_paths(Path(folder), number)[0] for number in shards]
        like = pooled[7]

        def nearest() -> np.ndarray:
            scores = pooled @ like / (np.linalg.norm(pooled, axis=1) * np.linalg.norm(like))
            return np.argsort(-scores, kind="stable")[:10]

        with Database({"features": paths}) as database:
            found = database.query(SIMILAR, {"like": like.tolist()})["sha256"].to_pylist()
            theirs = [hashlib.sha256(str(row).encode()).hexdigest() for row in nearest()]
            assert found == theirs
            for name, sql, values, peer, goal in (
                ("GROUP BY split", GROUP, {}, lambda: Counter(splits), 0.2),
                ("top 10 similar", SIMILAR, {"like": like.tolist()}, nearest, 1.0),
            ):
                ours = median_of(lambda s=sql, v=values: database.query(s, v), given.repeats)
                other = median_of(peer, given.repeats)
                print(f"{name}  {ours:.3f} s (goal {goal}), numpy in memory {other:.3f} s")


if __name__ == "__main__":
    main()
