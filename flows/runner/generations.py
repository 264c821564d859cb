"""Texts that a run's model generated about held-out images, beside what people wrote."""

from typing import Any

from PIL import Image

from flows.pages.page import MOST_PIXELS
from flows.pages.shown_images import contents_of
from model.decoding import BadImageError, decode_image
from pipeline.catalog.catalog import Catalog

COLUMNS = ("image", "kind", "question", "people wrote", "real", "shuffled", "blind")
_SQL = """
SELECT sha256, kind, question,
    list_aggregate(any_value("references"), 'string_agg', ' | ') AS people,
    any_value(prediction) FILTER (condition = 'real') AS real,
    any_value(prediction) FILTER (condition = 'shuffled') AS shuffled,
    any_value(prediction) FILTER (condition = 'blind') AS blind
FROM predictions WHERE stage = 'finetune' AND kind IN ('caption', 'answer')
GROUP BY sha256, kind, image_id, question
QUALIFY row_number() OVER (PARTITION BY kind ORDER BY image_id, question) <= $count
ORDER BY kind DESC, image_id, question
"""


def generations(catalog: Catalog, count: int, side: int) -> list[list[Any]]:
    """Return rows of `COLUMNS`; the first is an image, None where it is gone.

    Raises:
        StorageError: A file cannot be read.
    """
    with catalog.open(names=("predictions",)) as database:
        if "predictions" not in database.names:
            return []
        rows = database.query(_SQL, {"count": count}).to_pylist()
    files = dict(contents_of(catalog, {row["sha256"] for row in rows}))
    return [[_small(files.get(row.pop("sha256")), side), *row.values()] for row in rows]


def _small(data: bytes | None, side: int) -> Image.Image | None:
    try:
        image = decode_image(data, MOST_PIXELS) if data else None
    except BadImageError:
        return None
    if image is not None:
        image.thumbnail((side, side))
    return image
