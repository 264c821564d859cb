"""What Weights & Biases keeps of a finished run: its report, main scores, and generations."""

from PIL import Image

from flows.pages.page import MOST_PIXELS
from flows.pages.shown_images import contents_of
from model.decoding import BadImageError, decode_image
from pipeline.catalog.catalog import Catalog
from pipeline.training.observers.tracking import RunReport

GENERATIONS = 16  # of each kind, about as many images
_SIDE = 224  # pixels of an image's longer side
_COLUMNS = ("image", "kind", "question", "people wrote", "real", "shuffled", "blind")
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
_SCORES = "SELECT metric, condition, value FROM metrics WHERE stage = 'finetune'"


def wandb_report(catalog: Catalog, run: str, page: str, place: str) -> RunReport:
    """Return what is kept of a run.

    Args:
        catalog: The catalog of that run.
        run: Its name.
        page: The report, as HTML.
        place: Where the report lies.

    Raises:
        StorageError: A file cannot be read.
    """
    with catalog.open(names=("predictions", "metrics")) as database:
        there = {"predictions", "metrics"} <= set(database.names)
        rows = database.query(_SQL, {"count": GENERATIONS}).to_pylist() if there else []
        scores = database.query(_SCORES, {}).to_pylist() if there else []
    files = dict(contents_of(catalog, {row["sha256"] for row in rows}))
    return RunReport(
        name=f"report-{run}",
        page=page,
        place=place,
        scores={f"{row['metric']}_{row['condition']}": row["value"] for row in scores},
        columns=_COLUMNS,
        rows=[
            [_small(files.get(row["sha256"])), *(row[name] for name in list(row)[1:])]
            for row in rows
        ],
    )


def _small(data: bytes | None) -> Image.Image | None:
    try:
        image = decode_image(data, MOST_PIXELS) if data else None
    except BadImageError:
        return None
    if image is not None:
        image.thumbnail((_SIDE, _SIDE))
    return image
