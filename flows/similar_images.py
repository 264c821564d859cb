"""The images nearest to an image, by pooled embedding, in SQL."""

import hashlib
from pathlib import Path
from typing import Any

from pipeline.catalog.catalog import Catalog
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from storage.sql.queries import Database
from storage.store.manifest import Manifest

_VIEWS = ("features", "images", "captions")
_BY_ID = "SELECT sha256 FROM images WHERE image_id = $id"
_STORED = "SELECT pooled FROM features WHERE sha256 = $sha"
_WIDTH = "SELECT len(pooled) AS width FROM features LIMIT 1"
# The embeddings are normalised, so the order is that of the inner product, too.
_NEAREST = """
SELECT image_id, split,
       array_cosine_similarity(pooled, $pooled::FLOAT[{width}])::DOUBLE AS similarity
FROM features WHERE sha256 <> $sha ORDER BY similarity DESC, image_id LIMIT $count
"""
# For the nearest images only: over all captions it would take as long as the search.
_TEXTS = """
WITH near AS (SELECT unnest($ids::BIGINT[]) AS image_id)
SELECT image_id, any_value(file_name) AS file_name, min(caption) AS caption
FROM near LEFT JOIN images USING (image_id) LEFT JOIN captions USING (image_id) GROUP BY image_id
"""


def find_similar(
    catalog: Catalog, image: str, count: int, settings: Settings
) -> list[dict[str, Any]]:
    """Return the nearest images, each with its cosine similarity, id, split and a caption."""
    with catalog.open(_NEAREST, names=_VIEWS) as database:
        sha256, data = _content(database, image)
        stored = database.query(_STORED, {"sha": sha256})["pooled"].to_pylist()
        if stored:
            pooled = stored[0]
        elif data is None:
            raise PipelineError(f"image {image} has no embedding", "`phivision run` makes it")
        else:
            pooled = _embed(catalog, data, settings)
        width = database.query(_WIDTH)["width"][0].as_py()
        near = database.query(
            _NEAREST.format(width=width), {"pooled": pooled, "sha": sha256, "count": count}
        ).to_pylist()
        texts = database.query(_TEXTS, {"ids": [row["image_id"] for row in near]}).to_pylist()
    by_id = {row["image_id"]: row for row in texts}
    rounded = ({**row, "similarity": round(row["similarity"], 4)} for row in near)
    return [{**row, **by_id[row["image_id"]]} for row in rounded]


def _content(database: Database, image: str) -> tuple[str, bytes | None]:
    """Return the hash of an image and, where it was given as a file, its bytes."""
    if image.isdigit() and not Path(image).exists():
        rows = database.query(_BY_ID, {"id": int(image)})
        if not rows.num_rows:
            raise PipelineError(
                f"there is no image {image}",
                "give an image file, or an id of "
                'phivision sql "SELECT image_id FROM images LIMIT 5"',
            )
        return rows["sha256"][0].as_py(), None
    path = Path(image)
    if not path.is_file():
        raise PipelineError(f"No such file: {path}", "give an image id or the path of an image")
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), data


def _embed(catalog: Catalog, data: bytes, settings: Settings) -> list[float]:
    """Return the pooled embedding of an image, from the encoder that made the stored ones."""
    from model.decoding import BadImageError, decode_image
    from model.light_clip import LightClip, fits
    from pipeline.engine.devices import pick_device

    features, images = catalog.manifest("features"), catalog.manifest("images")
    clip = _encoder(catalog, features)
    if features is None or images is None or clip is None:
        raise PipelineError("the encoder of these embeddings is gone", "`phivision run`")
    try:
        image = decode_image(data, images.payload["recipe"]["images"]["max_pixels"])
    except BadImageError as error:
        raise PipelineError(f"the file cannot be used: {error}", "give a JPEG or PNG") from None
    layer = features.payload["recipe"]["features"]["layer"]
    device = pick_device(settings)
    if device == "cpu" and fits(clip):  # without the seconds that open_clip takes to import
        return LightClip(clip, layer).encode(image).pooled.tolist()
    from model.encoder import PatchEncoder

    encoder = PatchEncoder(clip, layer, device)
    return encoder.encode_images([image]).pooled[0].tolist()


def _encoder(catalog: Catalog, features: Manifest | None) -> Path | None:
    """Return the folder of the encoder that made the embeddings, not that of a later one."""
    wanted = features.payload["inputs"].get("backbones") if features else None
    for manifest in catalog.store.manifests("backbones"):
        if manifest.digest == wanted:
            return catalog.store.artifact(manifest).directory("clip")
    return None
