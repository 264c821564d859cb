"""How long `phivision explore` takes to answer over as many images as a COCO run has.

Run it from the repository root: `python tests/benchmarks/explore_pages.py`. A store is filled with
made-up rows and small photographs of noise; then every question of the page is timed, from the
filters to the images of the gallery. The goal for each: half a second.
"""

import argparse
import hashlib
import io
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image

from flows.explore.page import PAGE, Explorer
from pipeline.catalog.catalog import Catalog
from pipeline.data import schemas
from pipeline.data.image_shards import SHARD_BYTES
from pipeline.engine.materialize import Outcome
from pipeline.engine.runs import record_run
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.commits import Provenance, commit
from storage.store.manifest import Manifest, fingerprint_of
from storage.tables import write_table
from tests.benchmarks.helpers.spread import spread

OBJECTS = [f"object {n}" for n in range(80)]
WORDS = (
    *("a", "man", "dog", "cat", "on", "in", "street", "red", "blue", "table", "grass", "rides"),
    *("holds", "near", "large", "small", "two"),
)
RARE = 2000  # one image of so many has a caption with a word of its own
ANY = "any"
FILTERS = ["", ANY, ANY, ANY, ANY, "caption", "real", "", "", "as stored"]


def fill(folder: Path, rows: int, pixels: int) -> ArtifactStore:
    """Return a store of so many images; a fifth is for testing and has predictions."""
    store = ArtifactStore(str(folder / "store"), folder / "cache")
    random = np.random.default_rng(0)
    stages = {"images": _images, "examples": _examples, "evaluate": _evaluate}
    for stage, write in stages.items():
        write(folder / stage, rows, random)
    _files(folder / "images", rows, pixels, random)
    made = [_commit(store, stage, folder / stage) for stage in stages]
    record_run(store, preset("demo"), [Outcome(each.stage, "made", each, 1.0) for each in made])
    return store


def _images(out: Path, rows: int, random: np.random.Generator) -> None:
    images = [
        {
            "image_id": n,
            "split": _split(n),
            "source": "coco",
            "sha256": _key(n),
            "file_name": f"{n:012d}.jpg",
            "width": 640,
            "height": 480,
            "bytes": 10_000,
        }
        for n in range(rows)
    ]
    captions = [
        {
            "caption_id": n,
            "image_id": n // 5,
            "caption": f"{text} zebra" if n % (5 * RARE) == 0 else text,
        }
        for n, text in enumerate(_texts(5 * rows, random))
    ]
    chosen = random.integers(0, len(OBJECTS), 7 * rows)
    box = {"x": 10.0, "y": 20.0, "width": 200.0, "height": 100.0, "area": 2e4, "iscrowd": False}
    objects = [
        {"object_id": n, "image_id": n // 7, "category": OBJECTS[kind], **box}
        for n, kind in enumerate(chosen.tolist())
    ]
    drops = [
        schemas.drop("images", "caption", n, f"{n:012d}.jpg", "too long", "")
        for n in range(0, rows, 50)
    ]
    write_table(out / "images.parquet", images, schemas.IMAGES)
    write_table(out / "captions.parquet", captions, schemas.CAPTIONS)
    write_table(out / "objects.parquet", objects, schemas.OBJECTS)
    write_table(out / "drops.parquet", drops, schemas.DROPS)


def _examples(out: Path, rows: int, random: np.random.Generator) -> None:
    tokens = list(range(40))
    examples = [
        {
            "example_id": n,
            "image_id": n % rows,
            "sha256": _key(n % rows),
            "more_sha256": [],
            "split": _split(n % rows),
            "source_id": n,
            "turns": 2,
            "kind": "caption" if n < rows else "conversation",
            "text": f"{text} {text}",
            "input_ids": tokens,
            "supervised": [True] * len(tokens),
        }
        for n, text in enumerate(_texts(2 * rows, random))
    ]
    write_table(out / "examples.parquet", examples, schemas.EXAMPLES)
    write_table(out / "questions.parquet", [], schemas.QUESTIONS)
    write_table(out / "drops.parquet", [], schemas.DROPS)


def _evaluate(out: Path, rows: int, random: np.random.Generator) -> None:
    asked = [
        (n, kind, condition)
        for n in range(4, rows, 5)
        for kind in ("caption", "answer")
        for condition in schemas.CONDITIONS
    ]
    texts, scores = _texts(len(asked), random), random.random(len(asked)).tolist()
    fixed: dict[str, Any] = {"stage": "finetune", "split": "test", "ended": True, "tokens": 9}
    predictions = [
        {
            **fixed,
            "prediction_id": at,
            "image_id": n,
            "kind": kind,
            "condition": condition,
            "question": "What is it?",
            "prediction": text,
            "references": [text],
            "score": score,
        }
        for at, ((n, kind, condition), text, score) in enumerate(
            zip(asked, texts, scores, strict=True)
        )
    ]
    write_table(out / "predictions.parquet", predictions, schemas.PREDICTIONS)


def _files(out: Path, rows: int, pixels: int, random: np.random.Generator) -> None:
    noise = [_jpeg(random.integers(0, 255, (pixels, pixels, 3), np.uint8)) for _ in range(32)]
    step = SHARD_BYTES // len(noise[0])
    for number, first in enumerate(range(0, rows, step)):
        last = min(first + step, rows)
        # The number behind the end of a JPEG makes each file one of its own, as photographs are.
        files = [
            {"sha256": _key(n), "data": noise[n % 32] + str(n).encode()} for n in range(first, last)
        ]
        write_table(out / f"files-{number:05d}.parquet", files, schemas.IMAGE_FILES)


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def _texts(count: int, random: np.random.Generator) -> Iterator[str]:
    for numbers in random.integers(0, len(WORDS), (count, 10)).tolist():
        yield " ".join(WORDS[n] for n in numbers)


def _key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def _split(number: int) -> str:
    return ("train", "train", "train", "validation", "test")[number % 5]


def _commit(store: ArtifactStore, stage: str, folder: Path) -> Manifest:
    payload = {"stage": stage, "recipe": {}, "code": {}, "inputs": {}, "source": {}}
    provenance = Provenance(summary={}, packages={}, commit="", seconds=1.0)
    return commit(store, folder, payload, fingerprint_of(payload), provenance, warn=print)


def measure(question: Callable[[], Iterator[object]], repeats: int) -> str:
    """Return the time until the list is there, and until its images are."""
    listed, complete = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        answers = question()
        next(answers)
        listed.append(time.perf_counter() - start)
        deque(answers, maxlen=0)
        complete.append(time.perf_counter() - start)
    return f"list {spread(listed, 3)} s, images {spread(complete, 3)} s"


def main() -> None:
    """Fill a store and print how long each question takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pixels", type=int, default=128, help="side of an image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the store here and use it again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        if not (folder / "store").exists():
            fill(folder, given.rows, given.pixels)
        catalog = Catalog(ArtifactStore(str(folder / "store"), folder / "cache"))
        explorer = Explorer(catalog, Settings())

        def ask(start: int = 0, **changed: str) -> Callable[[], Iterator[object]]:
            names = ["text", "split", "source", "category", "reason"]
            names += ["kind", "condition", "least", "most", "order"]
            values = [
                changed.get(key, default) for key, default in zip(names, FILTERS, strict=True)
            ]
            return lambda: explorer.find(start, *values)

        questions = {
            "first page": ask(),
            "page in the middle": ask(given.rows // 2 // PAGE * PAGE),
            "search for a text": ask(text="man dog cat"),
            "from all files": ask(text="zebra"),
            "search without a hit": ask(text="quagga"),
            "filter by split": ask(split="test"),
            "filter by object": ask(category="object 7"),
            "filter by reason": ask(reason="too long"),
            "filter by score": ask(least="0.4", most="0.6"),
            "worst first": ask(order="worst first"),
            "one image": lambda: iter([explorer.look(given.rows // 2)]),
        }
        print(f"{given.rows:,} images, {PAGE} on a page, median of {given.repeats}")
        for title, question in questions.items():
            print(f"{title:22} {measure(question, given.repeats)}", flush=True)


if __name__ == "__main__":
    main()
