"""The recipe's own filters over examples; the rows that they drop become drops."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.further_images import readable
from pipeline.data.schemas import drop
from pipeline.engine.stage import InputArtifact
from pipeline.recipe.embedding_columns import CLIP_SCORE, SIMILARITIES
from pipeline.recipe.parts import ExamplesPart
from pipeline.recipe.user_filters import apply_filters
from storage.tables import read_table

Row = dict[str, Any]
_SHOWN = ("image_id", "file_name", "width", "height")


class UserFilters:
    """Drops what the recipe's own filters say, from any number of rows at a time.

    Args:
        inputs: The stage's; tables of images and features are read if there are filters.
        examples: The recipe's part.
    """

    def __init__(self, inputs: Mapping[str, InputArtifact], examples: ExamplesPart) -> None:
        self._filters = examples.filters
        if not self._filters:
            return
        self._images = read_table(inputs["images"].path("images.parquet"), _SHOWN)
        self._near = self._scores = None
        if "features" in inputs:
            self._near = read_table(inputs["features"].path("nearest.parquet"))
            self._scores = read_table(inputs["features"].path("clip_scores.parquet"))

    def keep(self, rows: list[Row], drops: list[Row]) -> list[Row]:
        """Return the rows that are kept; the others become drops."""
        if not self._filters or not rows:
            return rows
        images = _by_key(self._images, "image_id", rows, "image_id")
        near = _by_key(self._near, "sha256", rows, "sha256")
        scores = _by_key(self._scores, "caption_id", rows, "source_id")
        seen = [
            {
                **_visible(row, images.get(row["image_id"], {}), near.get(row["sha256"], {})),
                CLIP_SCORE: scores.get(row["source_id"], {}).get("clip_score")
                if row["kind"] == "caption"
                else None,
            }
            for row in rows
        ]
        reasons = apply_filters(self._filters, seen)
        for number in sorted(reasons):
            row = rows[number]
            file = images.get(row["image_id"], {}).get("file_name", "")
            fields = (row["kind"], row["source_id"], file, reasons[number], row["text"])
            drops.append(drop("examples", *fields))
        return [row for number, row in enumerate(rows) if number not in reasons]


def _by_key(table: pa.Table | None, key: str, rows: list[Row], name: str) -> dict[Any, Row]:
    """Return the rows of a table that some rows name, by key."""
    if table is None:
        return {}
    wanted = {row[name] for row in rows} - {None}
    matching = table.filter(pc.field(key).isin(sorted(wanted)))
    return {row[key]: row for row in matching.to_pylist()}


def _visible(row: Row, image: Row, near: Row) -> Row:
    """Return the fields that a filter of the recipe may use."""
    shared = {name: row[name] for name in ("source", "kind", "split", "image_id", "text", "turns")}
    return {
        **shared,
        **{name: image.get(name) for name in ("file_name", "width", "height")},
        "characters": len(row["text"]),
        "tokens": len(row["input_ids"]),
        "questions": [readable(question) for question, _ in row["pairs"]],
        "answers": [answer for _, answer in row["pairs"]],
        **{name: near.get(name) for name in SIMILARITIES},
    }
