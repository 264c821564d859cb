"""What the page of the dataset knows of each image: texts, boxes, drops, predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.example_scores import Row, scored_predictions
from flows.pages.report import ask
from flows.pages.shown_images import images_of
from pipeline.catalog.catalog import Catalog

SIDE = 192  # pixels of an image's longer side
QUALITY = 55  # of its WebP: with SIDE, some 4 kB for a photograph
# By the content's hash, so spread over the set and the same each time; from each split in turn.
_CHOSEN = """
SELECT * EXCLUDE (place) FROM (
  SELECT image_id, split, source, file_name, sha256, width, height,
         row_number() OVER (PARTITION BY split ORDER BY sha256, image_id) AS place
  FROM images)
ORDER BY place, split DESC LIMIT $count
"""
_OF = "image_id IN (SELECT unnest($ids::BIGINT[]))"
# View → SQL of an image's id and one JSON value of each of its rows.
_ABOUT: Mapping[str, tuple[Sequence[str], str]] = {
    "captions": (
        ("captions",),
        f"SELECT image_id, caption AS value FROM captions WHERE {_OF} ORDER BY caption_id",  # noqa: S608
    ),
    "talks": (
        ("examples", "conversations"),
        "SELECT e.image_id, c.turns AS value FROM examples e "  # noqa: S608
        "JOIN conversations c ON c.conversation_id = e.source_id "
        f"WHERE e.kind = 'conversation' AND e.{_OF} ORDER BY e.example_id",
    ),
    "boxes": (
        ("objects",),
        "SELECT image_id, {'name': category, 'x': x, 'y': y, 'width': width, 'height': height} "  # noqa: S608
        f"AS value FROM objects WHERE {_OF} ORDER BY object_id",
    ),
    "drops": (
        ("drops", "images"),
        "SELECT i.image_id, {'kind': d.kind, 'reason': d.reason, 'detail': left(d.detail, 240)} "  # noqa: S608
        f"AS value FROM drops d JOIN images i ON i.file_name = d.file WHERE i.{_OF} "
        "ORDER BY d.kind, d.reason, d.record",
    ),
}
_WRITTEN = ("condition", "kind", "question", "prediction", "references", "score")


def image_records(catalog: Catalog, count: int) -> list[Row]:
    """Return all there is about some images, ready for JSON."""
    rows = ask(catalog, ("images",), _CHOSEN, count=count)
    ids = [row["image_id"] for row in rows]
    about: dict[str, dict[int, list[Any]]] = {name: {} for name in (*_ABOUT, "predictions")}
    for name, (views, sql) in _ABOUT.items():
        for row in ask(catalog, views, sql, ids=ids):
            about[name].setdefault(row["image_id"], []).append(row["value"])
    for row in scored_predictions(catalog):
        said = {key: row[key] for key in _WRITTEN}
        about["predictions"].setdefault(row["image_id"], []).append(said)
    shown = images_of(catalog, [row["sha256"] for row in rows], SIDE, QUALITY)
    return [
        {
            **row,
            "image": shown.get(row["sha256"]),
            **{name: entries.get(row["image_id"], []) for name, entries in about.items()},
        }
        for row in rows
    ]
