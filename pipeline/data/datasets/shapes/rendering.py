"""Scenes become a dataset: archives in COCO's own layout, conversations in LLaVA's schema.

Invariant: the same seed and counts give the same bytes (no clock, fixed order, stored members),
and image number i is the same whatever the counts. A file appears whole or not at all.
"""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from pipeline.data.datasets.shapes.defects import spoil_captions, spoil_jpeg, spoil_record
from pipeline.data.datasets.shapes.drawing import draw, encode
from pipeline.data.datasets.shapes.scenes import SHAPES, Scene, make_scene, outline
from pipeline.data.datasets.shapes.wording import Turn, captions, conversations

# Ids with gaps, as in COCO's categories, so that they cannot be mistaken for row numbers.
CATEGORY_IDS = dict(zip(SHAPES, (1, 2, 3, 5), strict=True))

# The splits are far apart, so that more training images never change the validation images.
_FIRST_INDEX = {"train2017": 0, "val2017": 500_000}
_TIMESTAMP = (2017, 9, 1, 0, 0, 0)
_INFO = {
    "description": "Rendered shapes in the layout of COCO 2017",
    "url": "http://shapes.invalid",
    "version": "1.0",
    "year": 2017,
    "contributor": "phivision",
    "date_created": "2017/09/01",
}
_LICENSES = [
    {"url": "http://creativecommons.org/publicdomain/zero/1.0/", "id": 1, "name": "CC0 1.0"}
]


def image_id(index: int) -> int:
    """The COCO image id of scene `index`; two of three ids do not exist."""
    return 3 * index + 1


def file_name(index: int) -> str:
    """The file name of scene `index`: its image id in twelve digits."""
    return f"{image_id(index):012d}.jpg"


def scene_indices(split: str, images: int) -> range:
    """The scenes that make up a split.

    Args:
        split: "train2017" or "val2017".
        images: Number of images in it.

    Raises:
        ValueError: If the split would be empty, or reach into the next one.
    """
    if not 0 < images <= _FIRST_INDEX["val2017"]:
        raise ValueError(f"{split} must have 1 to {_FIRST_INDEX['val2017']} images, not {images}")
    first = _FIRST_INDEX[split]
    return range(first, first + images)


def render_coco(
    root: Path,
    *,
    seed: int,
    train_images: int,
    val_images: int,
    advance: Callable[[int], None],
) -> None:
    """Write the dataset as the archives that COCO 2017 consists of.

    They are `zips/train2017.zip`, `zips/val2017.zip` and
    `annotations/annotations_trainval2017.zip`.

    Args:
        root: The folder to write into; created if missing.
        seed: The seed of all scenes.
        train_images: Number of training images.
        val_images: Number of validation images.
        advance: Called with the number of images written since the last call.

    Raises:
        ValueError: If a number of images is out of range.
    """
    splits = _splits(seed, train_images, val_images)
    for split, scenes in splits.items():
        with _archive(root / "zips" / f"{split}.zip") as archive:
            for scene in scenes:
                jpeg = spoil_jpeg(scene.index, encode(draw(scene)))
                _add(archive, f"{split}/{file_name(scene.index)}", jpeg)
                advance(1)
    with _archive(root / "annotations" / "annotations_trainval2017.zip") as archive:
        for split, scenes in splits.items():
            for kind, document in _annotations(split, scenes).items():
                _add(archive, f"annotations/{kind}_{split}.json", json.dumps(document).encode())


def render_conversations(
    path: Path,
    *,
    seed: int,
    train_images: int,
    val_images: int,
    advance: Callable[[int], None],
) -> None:
    """Write the conversations about both splits in the schema of LLaVA-Instruct.

    Args:
        path: The JSON file to write.
        seed: The seed of all scenes.
        train_images: Number of training images.
        val_images: Number of validation images.
        advance: Called with the number of images done since the last call.

    Raises:
        ValueError: If a number of images is out of range.
    """
    records: list[dict[str, Any]] = []
    for scenes in _splits(seed, train_images, val_images).values():
        for scene in scenes:
            records += _records(scene)
            advance(1)
    with _replacing(path) as staged:
        staged.write_text(json.dumps(records), encoding="utf-8")


def _splits(seed: int, train_images: int, val_images: int) -> dict[str, list[Scene]]:
    counts = {"train2017": train_images, "val2017": val_images}
    return {
        split: [make_scene(seed, index) for index in scene_indices(split, images)]
        for split, images in counts.items()
    }


def _annotations(split: str, scenes: list[Scene]) -> dict[str, dict[str, Any]]:
    """The documents "captions" and "instances" of one split."""
    common = {
        "info": _INFO,
        "licenses": _LICENSES,
        "images": [_image_entry(split, scene) for scene in scenes],
    }
    categories = [
        {"supercategory": "shape", "id": number, "name": shape}
        for shape, number in CATEGORY_IDS.items()
    ]
    spoken = [entry for scene in scenes for entry in _caption_entries(scene)]
    boxed = [entry for scene in scenes for entry in _instance_entries(scene)]
    return {
        "captions": {**common, "annotations": spoken},
        "instances": {**common, "annotations": boxed, "categories": categories},
    }


def _image_entry(split: str, scene: Scene) -> dict[str, Any]:
    name = file_name(scene.index)
    # RFC 2606 reserves the domain .invalid: these addresses never reach a real server.
    return {
        "license": 1,
        "file_name": name,
        "coco_url": f"{_INFO['url']}/{split}/{name}",
        "height": scene.height,
        "width": scene.width,
        "date_captured": "2017-09-01 00:00:00",
        "flickr_url": f"{_INFO['url']}/{name}",
        "id": image_id(scene.index),
    }


def _caption_entries(scene: Scene) -> list[dict[str, Any]]:
    image = image_id(scene.index)
    return [
        {"image_id": image, "id": 10 * image + number, "caption": text}
        for number, text in enumerate(spoil_captions(scene.index, captions(scene)))
    ]


def _instance_entries(scene: Scene) -> list[dict[str, Any]]:
    image = image_id(scene.index)
    return [
        {
            **_geometry([(round(x, 2), round(y, 2)) for x, y in outline(scene, item)]),
            "iscrowd": 0,
            "image_id": image,
            "category_id": CATEGORY_IDS[item.shape],
            "id": 10 * image + number,
        }
        for number, item in enumerate(scene.objects)
    ]


def _geometry(corners: list[tuple[float, float]]) -> dict[str, Any]:
    """Polygon, area (by the shoelace formula) and box [x, y, width, height], in pixels."""
    following = [*corners[1:], corners[0]]
    doubled = sum(
        x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(corners, following, strict=True)
    )
    left, top = (min(axis) for axis in zip(*corners, strict=True))
    right, bottom = (max(axis) for axis in zip(*corners, strict=True))
    return {
        "segmentation": [[part for corner in corners for part in corner]],
        "area": round(abs(doubled) / 2, 2),
        "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
    }


def _records(scene: Scene) -> list[dict[str, Any]]:
    """One record per conversation; they share the id, as LLaVA's records about an image do."""
    name = file_name(scene.index)
    records = [
        {
            "id": name.removesuffix(".jpg"),
            "image": name,
            "conversations": _messages(turns, marker_first=(scene.index + number) % 2 == 0),
        }
        for number, turns in enumerate(conversations(scene))
    ]
    missing = f"{image_id(scene.index) + 1:012d}.jpg"
    return [*records[:-1], spoil_record(scene.index, records[-1], missing=missing)]


def _messages(turns: tuple[Turn, ...], *, marker_first: bool) -> list[dict[str, str]]:
    messages = []
    for turn in turns:
        messages.append({"from": "human", "value": turn.question})
        messages.append({"from": "gpt", "value": turn.answer})
    question = messages[0]["value"]
    messages[0]["value"] = f"<image>\n{question}" if marker_first else f"{question}\n<image>"
    return messages


@contextmanager
def _replacing(path: Path) -> Generator[Path, None, None]:
    """A file beside `path` that takes its place once it has been written without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{path.name}.part")
    try:
        yield staged
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def _archive(path: Path) -> Generator[ZipFile, None, None]:
    with _replacing(path) as staged, ZipFile(staged, "w", compression=ZIP_STORED) as archive:
        yield archive


def _add(archive: ZipFile, name: str, data: bytes) -> None:
    """Add a member whose header depends on neither the clock nor the operating system."""
    member = ZipInfo(name, date_time=_TIMESTAMP)
    member.create_system = 3
    member.external_attr = 0o644 << 16
    archive.writestr(member, data)
