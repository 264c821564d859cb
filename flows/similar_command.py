"""`phivision similar`: the pictures nearest to a picture, by pooled embedding, in SQL."""

import hashlib
from pathlib import Path
from typing import Any

from flows.tables import print_rows
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from storage.catalog import Catalog
from storage.sql import Database

_VIEWS = ("features", "images", "captions")
_BY_ID = "SELECT sha256 FROM images WHERE image_id = $id"
_KNOWN = "SELECT sha256 FROM features WHERE sha256 = $sha"
_WIDTH = "SELECT len(pooled) AS width FROM features LIMIT 1"
# The embeddings are normalised, so the order is that of the inner product, too.
_NEAREST = """
WITH wanted AS ({wanted}),
near AS (
  SELECT f.image_id, f.split, array_cosine_similarity(f.pooled, wanted.pooled)::DOUBLE
         AS similarity
  FROM features f, wanted WHERE f.sha256 <> $sha
  ORDER BY similarity DESC, f.image_id LIMIT $count)
SELECT round(similarity, 4) AS similarity, near.image_id, near.split, i.file_name,
       (SELECT min(caption) FROM captions c WHERE c.image_id = near.image_id) AS caption
FROM near LEFT JOIN images i USING (image_id) ORDER BY similarity DESC, image_id
"""
_STORED = "SELECT pooled FROM features WHERE sha256 = $sha"
_GIVEN = "SELECT CAST($pooled AS FLOAT[{width}]) AS pooled"


def print_similar(catalog: Catalog, image: str, count: int, settings: Settings) -> None:
    """Print the nearest pictures of the store, the nearest first.

    Args:
        catalog: Where the embeddings are.
        image: An image id of the store, or a picture file.
        count: How many.
        settings: Device of the encoder, which only a picture new to the store needs.

    Raises:
        PipelineError: There are no embeddings yet, or no such image.
    """
    rows = find_similar(catalog, image, count, settings)
    columns = ["similarity", "image_id", "split", "file_name", "caption"]
    print_rows(columns, [[row[name] for name in columns] for row in rows])


def find_similar(
    catalog: Catalog, image: str, count: int, settings: Settings
) -> list[dict[str, Any]]:
    """Return the nearest pictures, each with its cosine similarity, id, split and a caption."""
    with catalog.open(names=_VIEWS) as database:
        if "features" not in database.names:
            raise PipelineError(f"{catalog.store.uri} holds no embeddings yet", "`phivision run`")
        sha256, data = _content(database, image)
        keys: dict[str, object] = {"sha": sha256, "count": count}
        if database.query(_KNOWN, {"sha": sha256}).num_rows:
            return database.query(_NEAREST.format(wanted=_STORED), keys).to_pylist()
        if data is None:
            raise PipelineError(f"image {image} has no embedding", "`phivision run` makes it")
        pooled = _embed(catalog, data, settings)
        width = database.query(_WIDTH)["width"][0].as_py()
        sql = _NEAREST.format(wanted=_GIVEN.format(width=width))
        return database.query(sql, {**keys, "pooled": pooled}).to_pylist()


def _content(database: Database, image: str) -> tuple[str, bytes | None]:
    """Return the hash of a picture and, where it was given as a file, its bytes."""
    if image.isdigit() and not Path(image).exists():
        found = database.query(_BY_ID, {"id": int(image)})
        if not found.num_rows:
            raise PipelineError(
                f"there is no image {image}",
                "give a picture file, or an id of "
                'phivision sql "SELECT image_id FROM images LIMIT 5"',
            )
        return found["sha256"][0].as_py(), None
    path = Path(image)
    if not path.is_file():
        raise PipelineError(f"{path} is no file", "give an image id or the path of a picture")
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), data


def _embed(catalog: Catalog, data: bytes, settings: Settings) -> list[float]:
    """Return the pooled embedding of a picture, from the encoder that made the stored ones."""
    import io

    from PIL import Image

    from model.encoder import PatchEncoder
    from pipeline.devices import pick_device

    features, backbones = catalog.manifest("features"), catalog.manifest("backbones")
    if features is None or backbones is None:
        raise PipelineError("the encoder of these embeddings is gone", "`phivision run`")
    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise PipelineError(f"the file is no picture: {error}", "give a JPEG or PNG") from None
    layer = features.payload["recipe"]["features"]["layer"]
    folder = catalog.store.artifact(backbones).directory("clip")
    encoder = PatchEncoder(folder, layer, pick_device(settings))
    return encoder.encode_images([picture]).pooled[0].tolist()
