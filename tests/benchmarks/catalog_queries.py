"""How long the catalog's views take to answer over as many images as a COCO run has.

Run it from the repository root: `python tests/benchmarks/catalog_queries.py`. A store is filled
with random embeddings and made-up rows; then each query is timed from opening the views to its
rows, beside numpy's own time for the same nearest neighbours in memory. Goals: `GROUP BY split`
in under 0.2 s, the 10 most similar images in under 1 s.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from flows.commands.similar import find_similar
from pipeline.catalog.catalog import Catalog
from pipeline.data import schemas
from pipeline.engine.materialize import Outcome
from pipeline.engine.runs import record_run
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.features.shards import ShardRows, write_shard
from storage.store.artifacts import ArtifactStore
from storage.store.commits import Provenance, commit
from storage.store.manifest import Manifest, fingerprint_of
from storage.tables import write_table
from tests.benchmarks.helpers.spread import spread

SPLIT = "SELECT split, count(*) AS images FROM features GROUP BY split ORDER BY split"
SHARD = 2048


def fill(folder: Path, rows: int, width: int) -> tuple[ArtifactStore, np.ndarray]:
    """Return a store with so many images, and their embeddings."""
    store = ArtifactStore(str(folder / "store"), folder / "cache")
    random = np.random.default_rng(0)
    pooled = random.standard_normal((rows, width), np.float32)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    made = [_images(store, folder, rows), _features(store, folder, pooled)]
    outcomes = [Outcome(each.stage, "made", each, 1.0) for each in made]
    record_run(store, preset("demo"), outcomes)
    return store, pooled


def _images(store: ArtifactStore, folder: Path, rows: int) -> Manifest:
    images = [
        {"image_id": n, "split": _split(n), "sha256": _key(n), "file_name": f"{n:012d}.jpg"}
        for n in range(rows)
    ]
    captions = [
        {"caption_id": n, "image_id": n % rows, "caption": f"caption {n}"} for n in range(5 * rows)
    ]
    out = folder / "images"
    write_table(out / "images.parquet", images, schemas.IMAGES)
    write_table(out / "captions.parquet", captions, schemas.CAPTIONS)
    return _commit(store, "images", out)


def _features(store: ArtifactStore, folder: Path, pooled: np.ndarray) -> Manifest:
    """Write shards as the stage does, but with patches of two values, which no query here reads."""
    for number, start in enumerate(range(0, len(pooled), SHARD)):
        part = pooled[start : start + SHARD]
        ids, count = np.arange(start, start + len(part)), len(part)
        rows = ShardRows(
            sha256=[_key(n) for n in ids],
            image_id=ids,
            width=np.full(count, 640, np.int32),
            height=np.full(count, 480, np.int32),
            split=[_split(n) for n in ids],
            pooled=part,
            patches=np.ones((count, 1, 2), np.float16),
        )
        write_shard(folder / "features", number, rows, "benchmark")
    return _commit(store, "features", folder / "features")


def _key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def _split(number: int) -> str:
    return ("train", "train", "train", "validation", "test")[number % 5]


def _commit(store: ArtifactStore, stage: str, folder: Path) -> Manifest:
    payload = {"stage": stage, "recipe": {}, "code": {}, "inputs": {}, "source": {}}
    provenance = Provenance(summary={}, packages={}, commit="", seconds=1.0)
    return commit(store, folder, payload, fingerprint_of(payload), provenance, warn=print)


def seconds(call: Callable[[], object], repeats: int) -> str:
    """Return the time of a call, and that of the processor, which other load hardly changes."""
    taken, worked = [], []
    for _ in range(repeats):
        start, begin = time.perf_counter(), time.process_time()
        call()
        taken.append(time.perf_counter() - start)
        worked.append(time.process_time() - begin)
    return f"{spread(taken, 3)} s, {spread(worked, 3)} s of processor"


def main() -> None:
    """Fill a store and print both sides of each comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        store, pooled = fill(Path(name), given.rows, given.width)

        def grouped() -> None:
            with Catalog(store).open(SPLIT) as database:
                assert database.read_only(SPLIT).num_rows == 3

        def nearest() -> None:
            rows = find_similar(Catalog(store), "7", 10, Settings())
            assert [row["image_id"] for row in rows] == by_numpy()

        def by_numpy() -> list[int]:
            scores = pooled @ pooled[7]
            best = np.argpartition(-scores, 11)[:11]
            return best[np.argsort(-scores[best])].tolist()[1:]  # the first is the image itself

        print(f"{given.rows:,} images, embeddings of {given.width}, median of {given.repeats}")
        print(f"GROUP BY split     {seconds(grouped, given.repeats)}  (goal 0.2 s)")
        print(f"10 most similar    {seconds(nearest, given.repeats)}  (goal 1 s)")
        print(f"numpy, in memory   {seconds(by_numpy, given.repeats)}")


if __name__ == "__main__":
    main()
