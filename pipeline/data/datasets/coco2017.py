"""COCO 2017 as published: archives with known checksums; only chosen images are downloaded."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.data.source_layout import ANNOTATIONS, SPLITS, Chosen
from pipeline.engine.stage import SourceState, StageContext
from pipeline.recipe.data_sources import Coco2017Images
from pipeline.recipe.parts import ImagesPart

if TYPE_CHECKING:
    from pipeline.data.annotations import Annotations
    from pipeline.data.image_files import ImageFiles

# Checksum and bytes as published for cocodataset.org; the archives have not changed since.
COCO_2017 = {
    "zips/train2017.zip": ("md5:cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
    "zips/val2017.zip": ("md5:442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
    ANNOTATIONS: ("md5:f4bbac642086de4f52a3fdda2de5fa2c", 252_907_541),
}
ANNOTATIONS_2014 = "annotations/annotations_trainval2014.zip"
COCO_2014 = {ANNOTATIONS_2014: ("md5:0a379cfc70b0e71301e0f377548639bd", 252_872_794)}


def probe(source: Coco2017Images) -> SourceState:
    """Return nothing: the archives' checksums are part of the code."""
    del source
    return {}


def read(
    context: StageContext, images: ImagesPart, seed: int, drops: list[dict[str, Any]]
) -> dict[str, "Annotations"]:
    """Return the annotations of `train2017` and of `val2017`.

    Raises:
        PipelineError: A file is not in its format.
        StorageError: A download fails for good.
    """
    from pipeline.data.annotations import read_coco
    from pipeline.data.downloads import fetch_whole

    del seed
    source = _source(images)
    path = fetch_whole(context, source.root, ANNOTATIONS, COCO_2017)
    annotations = {split: read_coco(path, split, drops) for split in SPLITS}
    if source.exclude_val2014:
        train = SPLITS[0]
        annotations[train] = _without_val2014(context, source.root, annotations[train], drops)
    return annotations


def fetch(context: StageContext, images: ImagesPart, chosen: Chosen) -> Mapping[str, "ImageFiles"]:
    """Return where the chosen images of each split are, fetched as the recipe says.

    Raises:
        StorageError: A download fails for good.
    """
    return {split: _of_split(context, images, split, chosen[split]) for split in SPLITS}


def _of_split(
    context: StageContext, images: ImagesPart, split: str, records: Sequence[Mapping[str, Any]]
) -> "ImageFiles":
    from pipeline.data.downloads import fetch_by_address, fetch_some_of, fetch_whole
    from pipeline.data.image_files import ImageFiles

    source, name = _source(images), f"zips/{split}.zip"
    if source.fetch == "whole":
        return ImageFiles((fetch_whole(context, source.root, name, COCO_2017),))
    if source.fetch == "addresses":
        return fetch_by_address(context, name, images, records)
    return fetch_some_of(context, source.root, name, COCO_2017, images, records)


def _without_val2014(
    context: StageContext, root: str, annotations: "Annotations", drops: list[dict[str, Any]]
) -> "Annotations":
    from pipeline.data.annotations import Annotations, read_image_ids
    from pipeline.data.downloads import fetch_whole
    from pipeline.data.schemas import drop

    path = fetch_whole(context, root, ANNOTATIONS_2014, COCO_2014)
    excluded = read_image_ids(path, "captions_val2014.json")
    kept = [record for record in annotations.images if record["id"] not in excluded]
    drops += [
        drop("images", "image", record["id"], record["file_name"], "in val2014")
        for record in annotations.images
        if record["id"] in excluded
    ]
    return Annotations(kept, annotations.captions, annotations.objects)


def _source(images: ImagesPart) -> Coco2017Images:
    assert isinstance(images.source, Coco2017Images)  # this module reads no other source
    return images.source
