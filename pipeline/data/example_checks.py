"""Examples with which no training should begin: a split is empty, or shares an image with test."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.data.filters import LEAKS_SQL
from pipeline.data.made_examples import USED, MadeExamples
from pipeline.errors import PipelineError
from storage.sql.queries import Database

_VALIDATING = 4  # images with such a text that the suggested validation share should hold out
_IMAGES_SQL = """
SELECT split, kind, count(DISTINCT coalesce(sha256, text_id::VARCHAR)) AS images
FROM used WHERE kind <> '' GROUP BY ALL
"""


class Checks:
    """Counts examples and drops as they come, and remembers which images examples show."""

    def __init__(self) -> None:
        self._examples: Counter[str] = Counter()
        self._dropped: Counter[tuple[str, str]] = Counter()
        self._used: list[pa.Table] = []
        self._tokenized = 0

    def add(self, made: MadeExamples) -> None:
        """Count some examples and drops."""
        for (split, kind), count in _counts(made.examples, "split", "kind").items():
            self._examples[f"{split}_{kind}s"] += count
        for drops in (made.drops, made.late):
            self._dropped += _counts(drops, "kind", "reason")
        self._used.append(made.used)
        self._tokenized += made.counts["tokenized"][0].as_py()

    def refuse_empty(self, kinds: Sequence[str]) -> None:
        """Raise if there is nothing to train on, to validate with or to test with."""
        with Database({"used": self._all()}) as database:
            rows = database.query(_IMAGES_SQL).to_pylist()
        images = Counter({(row["split"], row["kind"]): row["images"] for row in rows})
        for kind in kinds:
            self._refuse_empty_kind(kind, images)
        if not images["test", kinds[0]]:  # captions, where there are any
            raise PipelineError(
                f"no {kinds[0]} is about a test image: the model could not be judged",
                "hold out more test images, or relax the fields of examples.* that drop them",
            )

    def _refuse_empty_kind(self, kind: str, images: Mapping[tuple[str, str], int]) -> None:
        trained = images["train", kind]
        if not trained:
            raise PipelineError(
                f"no {kind} is left to train on; dropped: {self._reasons(kind)}",
                "fix the source, or relax the fields of examples.* that drop them",
            )
        if not images["validation", kind]:
            share = min(0.5, math.ceil(100 * _VALIDATING / trained) / 100)
            raise PipelineError(
                f"no {kind} is about a validation image, and {trained} training images have "
                f"one: training could not select its best checkpoint",
                f"--set images.validation_share={share} holds more images out",
            )

    def _reasons(self, kind: str) -> str:
        counts = [
            f"{count} {reason}" for (of, reason), count in self._dropped.most_common() if of == kind
        ]
        return ", ".join(counts) or "none, the source holds none"

    def refuse_leaks(self) -> None:
        """Raise if an image, by content, is in training or validation and also in test."""
        with Database({"used": self._all()}) as database:
            leaks = database.query(LEAKS_SQL).to_pylist()
        if leaks:
            first = leaks[0]
            raise PipelineError(
                f"image {first['image_id']} ({first['split']}) and image {first['test_id']} (test) "
                f"are the same image; {len(leaks)} such images in all",
                "remove one of each pair from the dataset: a test image must not be trained on",
            )

    def summary(self) -> dict[str, Any]:
        """Return numbers of examples by split and kind, of drops by reason, and of new tokens."""
        dropped: Counter[str] = Counter()
        for (_, reason), count in self._dropped.items():
            dropped[reason] += count
        return {
            "examples": self._examples.total(),
            **dict(sorted(self._examples.items())),
            "dropped": dict(sorted(dropped.items())),
            "tokenized": self._tokenized,
        }

    def _all(self) -> pa.Table:
        return pa.concat_tables([USED.empty_table(), *self._used])


def _counts(table: pa.Table, first: str, second: str) -> Counter[tuple[str, str]]:
    """Return how often each two values of two columns are in one row."""
    grouped = table.group_by([first, second], use_threads=False).aggregate([([], "count_all")])
    columns = (grouped[name].to_pylist() for name in (first, second, "count_all"))
    return Counter({(one, two): count for one, two, count in zip(*columns, strict=True)})
