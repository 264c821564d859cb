"""COCO's annotation files as validated records.

A malformed record becomes a row of `drops` that names file, position and fault; a file that is not
JSON, or not COCO's, stops the run with its name. Whole numbers written as text or as floats are
accepted.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.coco_files import JSON_LIMITS, read_document
from pipeline.data.name_forms import composed
from pipeline.data.schemas import CAPTIONS, OBJECTS, drop
from pipeline.data.source_layout import SPLITS
from pipeline.errors import PipelineError
from storage.archives.archives import open_archive
from storage.packed_rows import PackedRows
from storage.tables import as_int64, is_number, is_text

Json = dict[str, Any]
_FLAGS = {"0": False, "1": True, "false": False, "true": True}  # how datasets write iscrowd
BROKEN = "broken record"
_USED = ("file_name", "coco_url", "source", "split")  # what the stage reads of an image's record


@dataclass(frozen=True)
class Annotations:
    """The records of one origin.

    Attributes:
        images: Records with `id`, `file_name` and `origin`, one per file, sorted by id.
        captions: Rows of the captions' table; `caption_id` is null where a record has no id.
        objects: Rows of the objects' table, likewise.
        test: Whether its images are test images, never trained on.
    """

    images: list[Json]
    captions: PackedRows = field(default_factory=partial(PackedRows, "captions", CAPTIONS))
    objects: PackedRows = field(default_factory=partial(PackedRows, "objects", OBJECTS))
    test: bool = False


def read_coco(path: Path, split: str, drops: list[Json], *, own: bool = False) -> Annotations:
    """Return the annotations of one split; boxes may be absent.

    Args:
        path: Folder or archive of the annotation files.
        split: Such as ``train2017``; it becomes the origin of the images.
        drops: Receives a row for each record that cannot be used.
        own: Whether the folder is the user's own, so that links in it are followed.

    Raises:
        PipelineError: A file is missing, not JSON, or not COCO's.
        StorageError: The archive cannot be read.
    """
    names = (f"captions_{split}.json", f"instances_{split}.json")
    with open_archive(path, limits=JSON_LIMITS, own=own) as archive:
        captions = read_document(archive, path, names[0], required=True)
        instances = read_document(archive, path, names[1], required=False)
        unique: dict[int, Json] = {}
        for name, document in zip(names, (captions, instances), strict=True):
            _gather_images(document.records("images"), name, split, unique, drops)
        images, meant = _by_file(unique)
        listed = _Listed(meant, drops)
        categories = {
            key: record["name"]
            for record in instances.records("categories")
            if isinstance(record, dict) and (key := as_int64(record.get("id"))) is not None
            if is_text(record.get("name"))
        }
        texts = listed.captions(captions.records("annotations"), names[0])
        boxes = listed.objects(instances.records("annotations"), names[1], categories)
        return Annotations(
            images=images,
            captions=PackedRows(names[0], CAPTIONS, texts),
            objects=PackedRows(names[1], OBJECTS, boxes),
            test=split == SPLITS[1],
        )


def _gather_images(
    records: Iterable[Any], name: str, split: str, unique: dict[int, Json], drops: list[Json]
) -> None:
    """Add the image records of one file to `unique`, by id."""
    for place, record in enumerate(records):
        fault = _image_fault(record)
        if fault:
            drops.append(_broken("image", name, f"images[{place}]", fault, record))
            continue
        key = as_int64(record["id"])
        assert key is not None  # `_image_fault` checks it
        used = {name: record[name] for name in _USED if name in record}
        first = unique.setdefault(key, {**used, "id": key, "origin": split})
        if composed(record["file_name"]) != composed(first["file_name"]):
            detail = f"{first['file_name']} has this id"
            drops.append(drop("images", "image", key, record["file_name"], "id is taken", detail))


def _by_file(unique: Mapping[int, Json]) -> tuple[list[Json], dict[int, int]]:
    """Return one record per file, by id, and for every id the id of that record.

    Flickr's lists have a record for each caption, so that one image has five ids.
    """
    first: dict[str, int] = {}
    meant = {
        key: first.setdefault(composed(unique[key]["file_name"]), key) for key in sorted(unique)
    }
    return [unique[key] for key, own in meant.items() if key == own], meant


class _Listed:
    """Reads records about listed images.

    Args:
        meant: The image's id, by every id that the list has for it.
        drops: Receives a row for each record that cannot be used.
    """

    def __init__(self, meant: Mapping[int, int], drops: list[Json]) -> None:
        self.meant, self.drops = meant, drops

    def captions(self, records: Iterable[Any], name: str) -> Iterator[Json]:
        """Yield the rows of captions."""
        for record, image in self._about_images("caption", records, name, _caption_fault):
            key = as_int64(record.get("id"))
            yield {"caption_id": key, "image_id": image, "caption": record["caption"]}

    def objects(
        self, records: Iterable[Any], name: str, categories: Mapping[int, str]
    ) -> Iterator[Json]:
        """Yield the rows of boxes with the names of their categories."""

        def fault(record: Json) -> str:
            return _object_fault(record, categories)

        for record, image in self._about_images("object", records, name, fault):
            category = as_int64(record["category_id"])
            assert category is not None  # `_object_fault` checks it
            sides = dict(
                zip(("x", "y", "width", "height"), map(float, record["bbox"]), strict=True)
            )
            yield {
                "object_id": as_int64(record.get("id")),
                "image_id": image,
                "category": categories[category],
                **sides,
                "area": float(record.get("area", 0)),
                "iscrowd": _flag(record.get("iscrowd", 0)),
            }

    def _about_images(
        self, kind: str, records: Iterable[Any], name: str, fault_of: Any
    ) -> Iterator[tuple[Json, int]]:
        """Yield the valid records about listed images, and the image's id."""
        for place, record in enumerate(records):
            fault = "not an object" if not isinstance(record, dict) else _id_fault(record)
            if fault:
                self.drops.append(_broken(kind, name, f"annotations[{place}]", fault, record))
                continue
            image = as_int64(record["image_id"])
            if image is None or image not in self.meant:
                key, detail = record.get("id", ""), f"image_id {image}"
                self.drops.append(drop("images", kind, key, "", "image not listed", detail))
            elif fault := fault_of(record):
                self.drops.append(_broken(kind, name, f"annotations[{place}]", fault, record))
            else:
                yield record, self.meant[image]


def read_image_ids(path: Path, name: str) -> set[int]:
    """Return the ids of the images that one annotation file lists.

    Raises:
        PipelineError: As `read_coco`.
        StorageError: As `read_coco`.
    """
    with open_archive(path, limits=JSON_LIMITS) as archive:
        images = read_document(archive, path, name, required=True).records("images")
        ids = (as_int64(record["id"]) for record in images if not _image_fault(record))
        return {key for key in ids if key is not None}


def captions_of(origins: Iterable[Annotations], wanted: Collection[int]) -> Iterator[pa.Table]:
    """Yield the captions of all chosen images; `examples` drops those of quarantined ones.

    Raises:
        PipelineError: The largest id leaves no room for those that are missing.
    """
    return _of_images([each.captions for each in origins], wanted, "caption_id")


def objects_of(origins: Iterable[Annotations], good: Collection[int]) -> Iterator[pa.Table]:
    """Yield the boxes of usable images.

    Raises:
        PipelineError: As `captions_of`.
    """
    return _of_images([each.objects for each in origins], good, "object_id")


def _of_images(
    origins: Sequence[PackedRows], images: Collection[int], key: str
) -> Iterator[pa.Table]:
    """Yield the rows about some images; those without an id get the next free one."""
    known = (value for rows in chain(*origins) for value in rows[key].to_pylist())
    largest = max((value for value in known if value is not None), default=0)
    free = count(largest + 1)
    for rows in chain(*origins):
        if rows[key].null_count:
            values = [next(free) if v is None else v for v in rows[key].to_pylist()]
            if max(values) >= 2**63:
                raise PipelineError(
                    f"{key} {largest} leaves no room for records without an id",
                    "give smaller ids, or an id to every record",
                )
            place = rows.column_names.index(key)
            rows = rows.set_column(place, rows.schema.field(key), pa.array(values, pa.int64()))
        # A set is built once; Arrow's `is_in` would build its own for every piece.
        yield rows.filter(pa.array([image in images for image in rows["image_id"].to_pylist()]))


def _broken(kind: str, file: str, place: str, fault: str, record: object) -> Json:
    return drop("images", kind, place, file, BROKEN, f"{fault}: {record!r}")


def _image_fault(record: object) -> str:
    """Return why a record does not describe an image, "" if it does."""
    if not isinstance(record, dict):
        return "not an object"
    if as_int64(record.get("id")) is None:
        return _no_number("id", record)
    return "" if is_text(record.get("file_name")) else "'file_name' is not text"


def _id_fault(record: Json) -> str:
    """Return what is wrong with the ids of a record about an image; its own id may be absent."""
    for name in ("id", "image_id"):
        absent = name == "id" and record.get(name) is None
        if not absent and as_int64(record.get(name)) is None:
            return _no_number(name, record)
    return ""


def _no_number(name: str, record: Json) -> str:
    return f"'{name}' is not a whole number" if record.get(name) is not None else f"no '{name}'"


def _caption_fault(record: Json) -> str:
    return "" if is_text(record.get("caption")) else "'caption' is not text"


def _object_fault(record: Json, categories: Mapping[int, str]) -> str:
    """Return why a record is not a box, "" if it is one."""
    match record.get("bbox"):
        case [x, y, w, h] if all(map(is_number, (x, y, w, h))):
            pass
        case _:
            return "'bbox' is not a list of four numbers"
    if as_int64(record.get("category_id")) not in categories:
        return "'category_id' is none of the categories"
    if not is_number(record.get("area", 0)):
        return "'area' is not a number"
    return "" if _flag(record.get("iscrowd", 0)) is not None else "'iscrowd' is neither 0 nor 1"


def _flag(value: object) -> bool | None:
    """Return a flag's value, None if it is not a flag; null counts as 0, like an absent one."""
    if value is None:
        return False
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None
