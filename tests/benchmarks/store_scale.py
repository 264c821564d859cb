"""What a store costs with ten thousand artifacts, and what its views cost with millions of rows.

Run it from the repository root: `python tests/benchmarks/store_scale.py`. A store of many small
artifacts is written, then `plan`, `plan` of another recipe, a cached run, `runs`, `verify` and `gc`
are measured: on this disk in seconds of the processor, which other load changes least, and on
moto's S3 server in requests, which is what an object store takes time for. Then two views are
asked: the examples of a recipe, and features whose shards are hundreds or thousands of files.

Goals: `plan` at most 1 s; on S3 so many listings as there are stages and thousands of objects, and
not as there are artifacts; 0.3 s for a statement over 600,000 examples; an answer over ten million
features (`--features 10_000_000`, some minutes), with few open files.
"""

import argparse
import logging
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyarrow as pa

from flows.commands.runs import print_runs
from pipeline.catalog.catalog import Catalog
from pipeline.costs.stage_seconds import forecast
from pipeline.data.schemas import EXAMPLES
from pipeline.engine.materialize import Outcome
from pipeline.engine.plan import cached_outcomes, plan
from pipeline.engine.runs import record_run
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.features.shards import ShardRows, write_shard
from storage.store.artifacts import ArtifactStore
from storage.store.commits import Provenance, commit
from storage.store.garbage import garbage_of
from storage.store.manifest import Manifest, fingerprint_of
from storage.store.survey import take_survey
from storage.store.verify import committed, verify
from storage.tables import write_arrow
from tests.benchmarks.helpers.large_store import objects, write_store
from tests.benchmarks.helpers.spread import spread
from tests.support.store_fixtures import AWS, environment

BY_SPLIT = "SELECT split, count(*) AS n FROM {} GROUP BY split ORDER BY split"
SHARD = 2048  # rows
REQUESTS = {"list_objects_v2": "LIST", "get_object": "GET", "head_object": "HEAD"}


def commands(store: ArtifactStore, work: Path) -> dict[str, Callable[[], None]]:
    """Return what is measured, by name; nothing is printed and nothing removed."""
    settings = Settings(store=store.uri)
    recipe = preset("demo")
    other = recipe.override({"finetune.epochs": 9})

    def planned(of: Any) -> None:
        forecast(of, store, plan(of, store), settings)

    def cached() -> None:
        outcomes = cached_outcomes(plan(recipe, store))
        assert outcomes is not None
        record_run(store, recipe, outcomes)

    def runs() -> None:
        with redirect_stdout(StringIO()):
            print_runs(store, "table", "", 20)

    def verified() -> None:
        assert verify(store, committed(store), lambda _: None) == []

    return {
        "plan": lambda: planned(recipe),
        "plan, another recipe": lambda: planned(other),
        "run, all cached": cached,
        "runs": runs,
        "verify": verified,
        "gc --dry-run": lambda: print(
            f"  (gc finds {len(garbage_of(take_survey(store, work, keep=5, grace=0.0))):,} items)"
        ),
    }


def on_this_disk(folder: Path, manifests: int, files: int, repeats: int) -> None:
    """Print seconds of each command on a local store."""
    began = time.perf_counter()
    written = write_store(folder / "store", manifests, files)
    print(f"{manifests:,} manifests, {written:,} files, in {time.perf_counter() - began:.0f} s")
    store = ArtifactStore(str(folder / "store"), folder / "cache")
    for name, command in commands(store, folder / "work").items():
        often = repeats if name not in ("verify", "gc --dry-run") else 1
        taken, worked = _timed(command, often)
        goal = "  (goal 1 s)" if name.startswith("plan") else ""
        print(f"  {name:21} {spread(worked)} s of processor, {spread(taken)} s{goal}")


def on_s3(folder: Path, manifests: int, files: int) -> None:
    """Print requests of each command on moto's S3 server."""
    with s3_store(folder) as (store, counts):
        began, count = time.perf_counter(), 0
        left = objects(manifests, files)
        while some := dict(islice(left, 500)):
            store.files._fs.pipe({f"{store.files._root}/{name}": some[name] for name in some})
            count += len(some)
        took = time.perf_counter() - began
        print(f"S3: {manifests:,} manifests, {count:,} objects, in {took:.0f} s")
        for name, command in commands(store, folder / "s3work").items():
            counts.clear()
            command()
            told = ", ".join(f"{counts[kind]:,} {kind}" for kind in ("LIST", "GET", "HEAD"))
            print(f"  {name:21} {told}")


@contextmanager
def s3_store(folder: Path) -> Iterator[tuple[ArtifactStore, Counter[str]]]:
    """Give a store on moto's server, and the number of requests by kind."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it prints a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    counts: Counter[str] = Counter()
    original = S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        counts[REQUESTS.get(method, method)] += 1
        return await original(self, method, *args, **kwargs)

    with environment({**AWS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}):
        S3FileSystem._call_s3 = counted
        try:
            S3FileSystem().mkdir("bench")
            yield ArtifactStore("s3://bench/store", folder / "s3cache"), counts
        finally:
            S3FileSystem._call_s3 = original
            server.stop()


def rows(folder: Path, examples: int, features: int, repeats: int) -> None:
    """Print seconds of a statement over examples, and over features, with the files it opens."""
    store = ArtifactStore(str(folder / "rows"), folder / "cache")
    made = [_examples(store, folder, examples), _features(store, folder, features)]
    record_run(store, preset("demo"), [Outcome(each.stage, "made", each, 1.0) for each in made])
    for view, count, goal in (("examples", examples, "  (goal 0.3 s)"), ("features", features, "")):

        def ask(view: str = view) -> None:
            assert Catalog(store).query(BY_SPLIT.format(view), printable=True).num_rows == 3

        with open_files() as most:
            taken, worked = _timed(ask, repeats)
        print(
            f"{view}: {count:,} rows by split {spread(taken)} s, {spread(worked)} s of processor, "
            f"{most[0]} files open at most{goal}"
        )


@contextmanager
def open_files() -> Iterator[list[int]]:
    """Give the most files that this process has open at once, looked at every few ms."""
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            most[0] = max(most[0], len(list(Path("/proc/self/fd").iterdir())))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def _examples(store: ArtifactStore, folder: Path, count: int) -> Manifest:
    numbers = np.arange(count)
    lengths = 12 + numbers % 8
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    columns: dict[str, Any] = {
        "example_id": numbers,
        "source": pa.array(["folder"] * count),
        "kind": pa.array(["caption"] * count),
        "split": _splits(numbers),
        "image_id": numbers // 5,
        "sha256": pa.array([f"{n // 5:064x}" for n in range(count)]),
        "more_sha256": pa.array([[]] * count, EXAMPLES.field("more_sha256").type),
        "source_id": numbers,
        "turns": np.zeros(count, np.int32),
        "text": pa.array([f"a man is riding horse number {n} on the beach" for n in range(count)]),
        "input_ids": pa.ListArray.from_arrays(
            pa.array(ends), pa.array((np.arange(ends[-1]) * 7919 % 8000).astype(np.int32))
        ),
        "supervised": pa.ListArray.from_arrays(pa.array(ends), pa.array([True] * int(ends[-1]))),
    }
    table = pa.table([columns[name] for name in EXAMPLES.names], EXAMPLES)
    write_arrow(folder / "examples" / "examples.parquet", table)
    return _commit(store, "examples", folder / "examples")


def _features(store: ArtifactStore, folder: Path, count: int) -> Manifest:
    """Write shards as the stage does, with embeddings of four values and patches of two."""
    random = np.random.default_rng(0)
    for number, start in enumerate(range(0, count, SHARD)):
        ids = np.arange(start, min(start + SHARD, count))
        shard = ShardRows(
            sha256=[f"{n:064x}" for n in ids.tolist()],
            image_id=ids,
            width=np.full(len(ids), 640, np.int32),
            height=np.full(len(ids), 480, np.int32),
            split=_splits(ids).to_pylist(),
            pooled=random.standard_normal((len(ids), 4), np.float32),
            patches=np.ones((len(ids), 1, 2), np.float16),
        )
        write_shard(folder / "features", number, shard, "benchmark")
    return _commit(store, "features", folder / "features")


def _splits(numbers: np.ndarray) -> pa.Array:
    return pa.array(("train", "train", "train", "validation", "test")).take(pa.array(numbers % 5))


def _commit(store: ArtifactStore, stage: str, folder: Path) -> Manifest:
    payload = {"stage": stage, "recipe": {}, "code": {}, "inputs": {}, "source": {}}
    provenance = Provenance(summary={}, packages={}, commit="", seconds=1.0)
    return commit(store, folder, payload, fingerprint_of(payload), provenance, warn=print)


def _timed(call: Callable[[], None], repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds by the clock and of the processor, of each repeat."""
    taken, worked = [], []
    for _ in range(repeats):
        start, begin = time.perf_counter(), time.process_time()
        call()
        taken.append(time.perf_counter() - start)
        worked.append(time.process_time() - begin)
    return taken, worked


def main() -> None:
    """Print the figures of the local store, of S3, and of the views."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--manifests", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--s3-manifests", type=int, default=1000, help="moto is slow: 0 for none")
    parser.add_argument("--s3-files", type=int, default=10_000)
    parser.add_argument("--examples", type=int, default=600_000)
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
        folder = Path(name)
        on_this_disk(folder, given.manifests, given.files, given.repeats)
        if given.s3_manifests:
            on_s3(folder, given.s3_manifests, given.s3_files)
        rows(folder, given.examples, given.features, given.repeats)


if __name__ == "__main__":
    main()
