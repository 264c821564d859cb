"""A small store with two finished runs, written by hand: every view of the catalog has rows.

Squares of one colour on a plain ground, each with captions, objects, a conversation, features and
predictions. The second run answers better than the first.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.data import schemas
from pipeline.data.quarantine import Quarantine
from pipeline.engine.materialize import Outcome
from pipeline.engine.runs import record_run
from pipeline.evaluation.intervals import mean_interval
from pipeline.evaluation.pointing import IMPORTANCE
from pipeline.features.clip_scores import CLIP_SCORES
from pipeline.features.nearest import nearest_images
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from storage.features.shards import ShardRows, write_shard
from storage.store.artifacts import ArtifactStore
from storage.store.commits import Provenance, commit
from storage.store.manifest import Manifest, fingerprint_of
from storage.tables import write_arrow, write_table

SPLITS = ("train",) * 6 + ("validation",) * 2 + ("test",) * 12
COLOURS = ("red", "green", "blue", "orange")
Row = dict[str, Any]


def image(number: int) -> bytes:
    """Return a PNG of one coloured square; no two are the same."""
    image = Image.new("RGB", (64 + number, 48), (120, 120, 100 + number))
    image.paste(Image.new("RGB", (20, 20), COLOURS[number % 4]), (4 + number, 10))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def torn_image() -> bytes:
    """Return the first half of a JPEG."""
    stream = io.BytesIO()
    Image.linear_gradient("L").save(stream, "JPEG")
    return stream.getvalue()[: len(stream.getvalue()) // 2]


def image_rows() -> list[Row]:
    """Return the rows of `images`; ids start at 100."""
    return [
        {
            "image_id": 100 + number,
            "split": split,
            "source": "folder",
            "origin": "val2017" if split == "test" else "train2017",
            "file_name": f"{100 + number:012d}.png",
            "sha256": hashlib.sha256(image(number)).hexdigest(),
            "bytes": len(image(number)),
            "width": 64 + number,
            "height": 48,
            "url": "",
        }
        for number, split in enumerate(SPLITS)
    ]


def build_store(folder: Path, *, runs: int = 2) -> ArtifactStore:
    """Return a store in a folder, with so many runs."""
    store = ArtifactStore(str(folder / "store"), folder / "cache")
    for number in range(runs):
        recipe = preset("demo").override({"finetune.epochs": 3 + number})
        outcomes = [
            Outcome(stage, "made", manifest, 1.0 + number)
            for stage, manifest in _artifacts(store, folder / f"made-{number}", number)
        ]
        record_run(store, recipe, outcomes)
    return store


def bare_run(folder: Path, recipe: Recipe | None = None) -> ArtifactStore:
    """Return a store whose only run has images and nothing else."""
    store = ArtifactStore(str(folder / "store"), folder / "cache")
    first = next(iter(_artifacts(store, folder / "made", 0)))
    record_run(store, recipe or preset("demo"), [Outcome(first[0], "made", first[1], 1.0)])
    return store


def _artifacts(store: ArtifactStore, folder: Path, run: int) -> Iterable[tuple[str, Manifest]]:
    writers = (_images, _conversations, _examples, _features, _pretrain, _finetune, _evaluate)
    for write in writers:
        stage = write.__name__.removeprefix("_")
        out = folder / stage
        out.mkdir(parents=True)
        summary = write(out, run)
        payload = {"stage": stage, "recipe": {"run": run}, "code": {}, "inputs": {}, "source": {}}
        provenance = Provenance(summary=summary, packages={}, commit="", seconds=2.5)
        yield stage, commit(store, out, payload, fingerprint_of(payload), provenance, warn=print)


def _write(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    write_table(path, rows, schema)


def _images(out: Path, run: int) -> Row:
    rows = image_rows()
    files = [{"sha256": row["sha256"], "data": image(n)} for n, row in enumerate(rows)]
    captions = [
        {"caption_id": 10 * n + k, "image_id": row["image_id"], "caption": text}
        for n, row in enumerate(rows)
        for k, text in enumerate(
            (f"A {COLOURS[n % 4]} square.", f"One <b>{COLOURS[n % 4]}</b> box")
        )
    ]
    objects = [
        {
            "object_id": 2 * n + k,
            "image_id": row["image_id"],
            "category": name,
            "x": 4.0,
            "y": 10.0,
            "width": 20.0,
            "height": 20.0,
            "area": 400.0,
            "iscrowd": False,
        }
        for n, row in enumerate(rows)
        for k, name in enumerate(("square", "wall")[: 1 + n % 2])
    ]
    drops = [
        schemas.drop("images", "image", 7, "broken.jpg", "broken image", "truncated"),
        schemas.drop("images", "image", 8, "page.jpg", "not an image", "<script>alert(1)</script>"),
    ]
    _write(out / "images.parquet", rows, schemas.IMAGES)
    _write(out / "files-00000.parquet", files, schemas.IMAGE_FILES)
    _write(out / "captions.parquet", captions, schemas.CAPTIONS)
    _write(out / "objects.parquet", objects, schemas.OBJECTS)
    _write(out / "drops.parquet", drops, schemas.DROPS)
    quarantine = Quarantine()
    quarantine.add({"id": 7, "file_name": "broken.jpg"}, torn_image())
    quarantine.add({"id": 8, "file_name": "page.jpg"}, b"<script>alert(1)</script>")
    quarantine.write(out)
    return {"images": len(rows)}


def _conversations(out: Path, run: int) -> Row:
    rows = [
        {
            "conversation_id": n,
            "record_id": str(n),
            "image_name": row["file_name"],
            "more_images": [],
            "turns": [
                {"speaker": "human", "text": "<image>\nWhat colour is it?"},
                {"speaker": "assistant", "text": f"{COLOURS[n % 4]}."},
            ],
        }
        for n, row in enumerate(image_rows())
    ]
    _write(out / "conversations.parquet", rows, schemas.CONVERSATIONS)
    _write(out / "drops.parquet", [], schemas.DROPS)
    return {"conversations": len(rows)}


def _examples(out: Path, run: int) -> Row:
    rows, questions = [], []
    for n, row in enumerate(image_rows()):
        place: Row = {key: row[key] for key in ("image_id", "sha256", "split")}
        place["more_sha256"] = []
        for kind, text in (("caption", f"A {COLOURS[n % 4]} square."), ("conversation", "Q? A.")):
            rows.append(
                {
                    **place,
                    "example_id": len(rows),
                    "kind": kind,
                    "source_id": n,
                    "turns": 1,
                    "text": text,
                    "input_ids": list(range(4 + n % 3)),
                    "supervised": [True] * (4 + n % 3),
                }
            )
        asked = {"question_id": n, "example_id": 2 * n + 1, "turn": 0}
        answer = {"question": "What colour is it?", "answer": COLOURS[n % 4]}
        questions.append({**place, **asked, **answer})
    drops = [
        schemas.drop("examples", "caption", 3, "000000000103.png", "refusal", "There is no image.")
    ]
    _write(out / "examples.parquet", rows, schemas.EXAMPLES)
    _write(out / "questions.parquet", questions, schemas.QUESTIONS)
    _write(out / "drops.parquet", drops, schemas.DROPS)
    return {"examples": len(rows)}


def _features(out: Path, run: int) -> Row:
    rows = image_rows()
    angles = np.linspace(0, 1.5, len(rows))
    first = ShardRows(
        sha256=[row["sha256"] for row in rows],
        image_id=np.array([row["image_id"] for row in rows], np.int64),
        width=np.array([row["width"] for row in rows], np.int32),
        height=np.array([row["height"] for row in rows], np.int32),
        split=[row["split"] for row in rows],
        patches=np.ones((len(rows), 4, 8), np.float16),
        pooled=np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32),
    )
    write_shard(out, 0, first, "encoder")
    second = replace(first, patches=np.full((len(rows), 9, 2), 2, np.float16))
    write_shard(out / "second", 0, second, "another encoder")
    (out / "joined.json").write_text('{"patches": 4}')
    indexes = sorted(out.glob("index-*"))
    write_arrow(out / "nearest.parquet", nearest_images(indexes, "cpu", lambda _: None))
    write_arrow(out / "clip_scores.parquet", CLIP_SCORES.empty_table())
    return {"images": len(rows)}


def _training(out: Path, gain: float = 0.0) -> Row:
    rows = [
        {"step": step, "metric": metric, "value": value / step - gain}
        for step in (1, 2, 3)
        for metric, value in (("loss", 2.0), ("val_nll", 2.5), ("expert_0_usage", 0.6))
    ]
    _write(out / "training.parquet", rows, schemas.TRAINING)
    return {"steps": 3}


def _pretrain(out: Path, run: int) -> Row:
    return _training(out)


def _finetune(out: Path, run: int) -> Row:
    return _training(out, 0.1 * run)


def _evaluate(out: Path, run: int) -> Row:
    predictions = []
    for condition in schemas.CONDITIONS:
        for n, row in enumerate(image_rows()):
            if row["split"] == "test":
                predictions += _said(n, row["image_id"], condition, right=_sees(n, condition, run))
    for number, row in enumerate(predictions):
        row["prediction_id"] = number
    metrics = []
    for condition in schemas.CONDITIONS:
        of = [r for r in predictions if r["condition"] == condition and r["kind"] == "answer"]
        metrics.append(_metric(condition, "answer_accuracy", [r["score"] for r in of]))
        metrics.append(_metric(condition, "cider_d", [4 * r["score"] for r in of]))
    metrics.append(_metric("most_frequent", "cider_d", [0.5] * 12))
    # Of the model before finetuning there are more figures than a person reads.
    metrics = [_pretrained(n, run) for n in range(90)] + metrics
    _write(out / "predictions.parquet", predictions, schemas.PREDICTIONS)
    _write(out / "importance.parquet", _looked(predictions), IMPORTANCE)
    _write(out / "metrics.parquet", metrics, schemas.METRICS)
    _write(out / "metrics_by_source.parquet", [], schemas.METRICS_BY_SOURCE)
    import json

    (out / "metrics.json").write_text(json.dumps(metrics))
    return {"predictions": len(predictions)}


def _sees(number: int, condition: str, run: int) -> bool:
    return (number % 12 < 7 + 2 * run) if condition == "real" else number % 4 == 0


def _said(number: int, image_id: int, condition: str, *, right: bool) -> list[Row]:
    colour = COLOURS[(number if right else 0) % 4]
    truth = COLOURS[number % 4]
    fixed = {"stage": "finetune", "split": "test", "condition": condition, "image_id": image_id}
    caption = {
        "kind": "caption",
        "question": "",
        "prediction": f"A {colour} square and a wall.",
        "references": [f"A {truth} square.", f"One {truth} box"],
        "hallucinated": [] if number % 2 else ["wall"],
    }
    answer = {
        "kind": "answer",
        "question_id": number,
        "question": "What colour is it?" if number % 2 else "Which hue is it?",
        "prediction": colour,
        "references": [truth],
        "score": float(colour == truth),
    }
    return [{**fixed, "ended": True, "tokens": 4, **each} for each in (caption, answer)]


def _looked(predictions: list[Row]) -> list[Row]:
    """Return where a model looked that saw the square of each image in its upper left corner."""
    return [
        {
            "prediction_id": row["prediction_id"],
            "image_id": row["image_id"],
            "condition": "real",
            "number": number,
            "word": word,
            "importance": [1.5 if word == "square" else 0.25, 0.1, -0.2, 0.0],
            "category": "square" if word == "square" else None,
            "share": 0.9 if word == "square" else None,
            "hit": True if word == "square" else None,
            "view_left": 8.0,
            "view_top": 0.0,
            "view_width": 48.0,
            "view_height": 48.0,
        }
        for row in predictions
        if row["condition"] == "real"
        for number, word in enumerate(row["prediction"].split())
    ]


def _pretrained(number: int, run: int) -> Row:
    row = _metric("real", f"figure_{number:02}", [number + 0.5 * run, number])
    return {**row, "stage": "pretrain"}


def _metric(condition: str, name: str, values: list[float]) -> Row:
    found = mean_interval(values, 0, 50)
    return {
        "stage": "finetune",
        "split": "test",
        "condition": condition,
        "metric": name,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "count": len(values),
    }
