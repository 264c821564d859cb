"""`phivision similar FILE`: an image that the store does not hold, read as its own are read."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.similar_images import find_similar
from pipeline.catalog.catalog import Catalog
from pipeline.data import schemas
from pipeline.engine.materialize import Outcome
from pipeline.engine.runs import record_run
from pipeline.errors import PipelineError
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.commits import commit
from storage.store.manifest import Manifest, fingerprint_of
from storage.tables import write_table
from tests.support.store_fixtures import NOTHING
from tests.unit.pipeline.features.test_features import Folder, embed, made_backbones

ROTATED = 6  # EXIF's word for an image that must be turned by 90 degrees
LIMIT = 10_000  # pixels


def pixels(number: int) -> np.ndarray:
    """Return a rough greyscale pattern, 40 high and 60 wide."""
    coarse = np.random.default_rng(number).integers(0, 255, (4, 6), np.uint8)
    return coarse.repeat(10, 0).repeat(10, 1)


def png(image: Image.Image, orientation: int = 1) -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(stream, "PNG", exif=exif)
    return stream.getvalue()


def add(
    store: ArtifactStore, stage: str, folder: Path, inputs: dict[str, str] | None = None
) -> Manifest:
    recipe: dict[str, Any] = {"images": {"max_pixels": LIMIT}, "features": {"layer": -1}}
    payload = {"stage": stage, "recipe": recipe, "inputs": inputs or {}, "folder": folder.name}
    return commit(store, folder, payload, fingerprint_of(payload), NOTHING, warn=print)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Return a store of twelve images, whose newest encoder is not that of its embeddings."""
    folder = tmp_path_factory.mktemp("similar")
    store = ArtifactStore(str(folder / "store"), folder / "cache")
    rows, files = [], []
    for number in range(12):
        data = png(Image.fromarray(pixels(number)).convert("RGB"))
        sha256 = hashlib.sha256(data).hexdigest()
        files.append({"sha256": sha256, "data": data})
        row = {"image_id": number, "split": "train", "sha256": sha256, "width": 60, "height": 40}
        rows.append(dict.fromkeys(schemas.IMAGES.names) | row)
    write_table(folder / "images" / "images.parquet", rows, schemas.IMAGES)
    write_table(folder / "images" / "files-00000.parquet", files, schemas.IMAGE_FILES)
    write_table(folder / "images" / "captions.parquet", [], schemas.CAPTIONS)
    used = made_backbones(folder / "used", seed=0)
    made, _ = embed(folder / "work", Folder(folder / "images"), used)
    old = add(store, "backbones", used.root)
    new = add(store, "backbones", made_backbones(folder / "new", seed=1).root)
    manifests = [
        add(store, "images", folder / "images"),
        add(store, "features", made.root, {"backbones": old.digest}),
        new,
    ]
    record_run(store, preset("demo"), [Outcome(m.stage, "made", m, 1.0) for m in manifests])
    return Catalog(store)


def nearest(catalog: Catalog, path: Path, data: bytes) -> dict[str, Any]:
    path.write_bytes(data)
    return find_similar(catalog, str(path), 1, Settings(device="cpu"))[0]


def test_a_rotated_copy_is_nearest_to_its_image(catalog: Catalog, tmp_path: Path) -> None:
    turned = Image.fromarray(pixels(5)).transpose(Image.Transpose.ROTATE_90)
    found = nearest(catalog, tmp_path / "x.png", png(turned, ROTATED))
    assert (found["image_id"], found["similarity"]) == (5, 1.0)


def test_a_copy_of_16_bits_is_nearest_to_its_image(catalog: Catalog, tmp_path: Path) -> None:
    deep = Image.fromarray(pixels(7).astype(np.uint16) * 257)
    found = nearest(catalog, tmp_path / "x.png", png(deep))
    assert (found["image_id"], found["similarity"]) == (7, 1.0)


def test_what_the_stage_would_refuse_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with pytest.raises(PipelineError, match="too many pixels"):
        nearest(catalog, path, png(Image.new("L", (LIMIT, 2))))
    with pytest.raises(PipelineError, match="not an image"):
        nearest(catalog, path, b"<html>")


def test_another_encoder_is_not_asked_instead(catalog: Catalog, tmp_path: Path) -> None:
    features = catalog.manifest("features")
    assert features is not None
    [made_by] = [
        manifest
        for manifest in catalog.store.manifests("backbones")
        if manifest.digest == features.payload["inputs"]["backbones"]
    ]
    name = f"manifests/backbones/{made_by.fingerprint}.json"
    data = catalog.store.read(name)
    assert data is not None
    catalog.store.files.remove(name)
    try:
        with pytest.raises(PipelineError, match="encoder of these embeddings is gone"):
            nearest(catalog, tmp_path / "x.png", png(Image.fromarray(pixels(3))))
    finally:
        catalog.store.write(name, data)
