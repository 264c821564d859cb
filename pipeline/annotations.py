"""What a dataset says about its pictures: COCO's annotation files as checked records.

A record that has not the format's shape becomes a row of `drops`; a file that is not JSON, or not
COCO's, stops the run with its name.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.schemas import drop
from storage.archives import Archive, ArchiveLimits, open_archive
from storage.tables import is_int64, is_number, is_text

Json = dict[str, Any]
JSON_LIMITS = ArchiveLimits(members=64, member_bytes=4 * 2**30, total_bytes=16 * 2**30, ratio=200.0)


@dataclass(frozen=True)
class Annotations:
    """The records of one origin.

    Attributes:
        images: Records with `id`, `file_name` and `origin`, one per id, sorted by id.
        captions: Records as the file has them.
        objects: Boxes, likewise.
        categories: Names of the boxes' categories, likewise.
    """

    images: list[Json]
    captions: list[Any]
    objects: list[Any]
    categories: list[Any]


def read_coco(path: Path, split: str, drops: list[Json]) -> Annotations:
    """Return the annotations of one split; boxes may be absent.

    Raises:
        PipelineError: A file is missing, no JSON, or not COCO's.
        StorageError: The archive cannot be read.
    """
    with open_archive(path, limits=JSON_LIMITS) as archive:
        captions = _json(archive, path, f"captions_{split}.json", required=True)
        instances = _json(archive, path, f"instances_{split}.json", required=False)
    unique: dict[int, Json] = {}
    for record in (*captions.get("images", ()), *instances.get("images", ())):
        if not _is_image(record):
            drops.append(drop("images", "image", "", str(path), "broken record", repr(record)))
            continue
        first = unique.setdefault(record["id"], {**record, "origin": split})
        if record["file_name"] != first["file_name"]:
            detail = f"{first['file_name']} has this id"
            drops.append(
                drop("images", "image", record["id"], record["file_name"], "id is taken", detail)
            )
    return Annotations(
        images=[unique[key] for key in sorted(unique)],
        captions=[*_of_listed(captions.get("annotations", ()), unique, "caption", drops)],
        objects=[*_of_listed(instances.get("annotations", ()), unique, "object", drops)],
        categories=list(instances.get("categories", ())),
    )


def _of_listed(
    records: Iterable[Any], images: Collection[int], kind: str, drops: list[Json]
) -> Iterator[Any]:
    """Yield the records of listed images; whether they are whole is asked when they are used."""
    for record in records:
        image = record.get("image_id") if isinstance(record, dict) else None
        if is_int64(image) and image not in images:
            key = record.get("id", "")
            drops.append(drop("images", kind, key, "", "image not listed", f"image_id {image}"))
        else:
            yield record


def read_image_ids(path: Path, name: str) -> set[int]:
    """Return the ids of the images that one annotation file lists.

    Raises:
        PipelineError: As `read_coco`.
        StorageError: As `read_coco`.
    """
    with open_archive(path, limits=JSON_LIMITS) as archive:
        images = _json(archive, path, name, required=True).get("images", ())
    return {record["id"] for record in images if _is_image(record)}


def captions_of(found: Annotations, wanted: set[int], drops: list[Json]) -> Iterator[Json]:
    """Yield the captions of all chosen pictures; `examples` drops those of quarantined ones."""
    for record in found.captions:
        match record:
            case {"id": key, "image_id": image, "caption": text} if (
                is_int64(key) and is_int64(image) and is_text(text)
            ):
                if image in wanted:
                    yield {"caption_id": key, "image_id": image, "caption": text}
            case _:
                drops.append(drop("images", "caption", "", "", "broken record", repr(record)))


def objects_of(found: Annotations, good: set[int], drops: list[Json]) -> Iterator[Json]:
    """Yield the boxes of usable pictures with the names of their categories."""
    names = {
        found["id"]: found["name"]
        for found in found.categories
        if isinstance(found, dict) and is_int64(found.get("id")) and is_text(found.get("name"))
    }
    for record in found.objects:
        match record:
            case {"id": key, "image_id": image, "category_id": category, "bbox": [x, y, w, h]} if (
                all(map(is_int64, (key, image, category)))
                and category in names
                and all(map(is_number, (x, y, w, h, record.get("area", 0))))
            ):
                if image in good:
                    yield _object(record, names[category], (x, y, w, h))
            case _:
                drops.append(drop("images", "object", "", "", "broken record", repr(record)))


def _object(record: Mapping[str, Any], category: str, box: tuple[float, ...]) -> Json:
    sides = dict(zip(("x", "y", "width", "height"), map(float, box), strict=True))
    return {
        "object_id": record["id"],
        "image_id": record["image_id"],
        "category": category,
        **sides,
        "area": float(record.get("area", 0)),
        "iscrowd": bool(record.get("iscrowd", 0)),
    }


def _is_image(record: object) -> bool:
    return (
        isinstance(record, dict) and is_int64(record.get("id")) and is_text(record.get("file_name"))
    )


def _without_outline(record: Json) -> Json:
    """Return an object without its polygons, which are most of an instances file and unused."""
    record.pop("segmentation", None)
    return record


def _json(archive: Archive, path: Path, name: str, *, required: bool) -> Json:
    found = [member for member in archive.names() if member.rsplit("/", 1)[-1] == name]
    if not found:
        if required:
            raise PipelineError(f"{path} holds no {name}", "COCO's annotation files are needed")
        return {}
    try:
        value = json.loads(archive.read(found[0]), object_hook=_without_outline)
    except (ValueError, RecursionError) as error:
        raise PipelineError(
            f"{path}: {found[0]} is not valid JSON: {error}", "fetch that file again"
        ) from None
    lists = ("images", "annotations", "categories")
    if not isinstance(value, dict) or any(not isinstance(value.get(k, []), list) for k in lists):
        raise PipelineError(
            f"{path}: {found[0]} is JSON but not COCO's format",
            "it must be an object with the lists 'images' and 'annotations'",
        )
    return value
