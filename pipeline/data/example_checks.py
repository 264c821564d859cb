"""Examples with which no training should begin: a split is empty, or shares an image with test."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.data.filters import LEAKS_SQL
from pipeline.errors import PipelineError
from storage.sql.queries import Database

Row = dict[str, Any]
_VALIDATING = 4  # images with such a text that the suggested validation share should hold out


def refuse_empty(rows: list[Row], drops: list[Row], kinds: Sequence[str]) -> None:
    """Raise if there is nothing to train on, to validate with or to test with."""
    images: dict[tuple[str, str], set[str | int]] = defaultdict(set)
    for row in rows:
        images[row["split"], row["kind"]].add(row["sha256"] or row["source_id"])
    for kind in kinds:
        trained = len(images["train", kind])
        if not trained:
            raise PipelineError(
                f"no {kind} is left to train on; dropped: {_reasons(kind, drops)}",
                "fix the source, or relax the fields of examples.* that drop them",
            )
        if not images["validation", kind]:
            share = min(0.5, math.ceil(100 * _VALIDATING / trained) / 100)
            raise PipelineError(
                f"no {kind} is about a validation image, and {trained} training images have "
                f"one: training could not select its best checkpoint",
                f"--set images.validation_share={share} holds more images out",
            )
    if not images["test", kinds[0]]:  # captions, where there are any
        raise PipelineError(
            f"no {kinds[0]} is about a test image: the model could not be judged",
            "hold out more test images, or relax the fields of examples.* that drop them",
        )


def _reasons(kind: str, drops: list[Row]) -> str:
    counts = Counter(row["reason"] for row in drops if row["kind"] == kind)
    told = (f"{count} {reason}" for reason, count in counts.most_common())
    return ", ".join(told) or "none, the source holds none"


def refuse_leaks(rows: list[Row]) -> None:
    """Raise if an image, by content, is in training or validation and also in test."""
    columns = ("split", "image_id", "sha256")
    shown = [tuple(row[name] for name in columns) for row in rows]
    shown += [(row["split"], *image) for row in rows for image in row["further"]]
    used = pa.table({name: [row[at] for row in shown] for at, name in enumerate(columns)})
    with Database({"used": used}) as database:
        leaks = database.query(LEAKS_SQL).to_pylist()
    if leaks:
        first = leaks[0]
        raise PipelineError(
            f"image {first['image_id']} ({first['split']}) and image {first['test_id']} (test) "
            f"are the same image; {len(leaks)} such images in all",
            "remove one of each pair from the dataset: a test image must not be trained on",
        )
