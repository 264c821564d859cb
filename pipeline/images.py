"""Stage `images`: a COCO-format dataset becomes tables and shards of pictures that all decode.

Each picture is read once, decoded once to prove that it can be, and kept as its original bytes.
What cannot be used is quarantined in `drops` with its file, its record and the reason.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from model.decoding import BadImageError, decode_image
from pipeline.errors import PipelineError
from pipeline.recipe_parts import ImagesPart
from pipeline.schemas import CAPTIONS, DROPS, IMAGE_FILES, IMAGES, OBJECTS, drop
from pipeline.sources import SPLITS, CocoFiles, locate
from pipeline.stage import StageContext, Summary
from storage.archives import Archive, ArchiveLimits, open_archive, resolve_member
from storage.errors import StorageError, UnsafeArchiveError
from storage.tables import is_int64, is_number, is_text, write_table

SHARD_BYTES = 256 * 2**20
JSON_LIMITS = ArchiveLimits(members=64, member_bytes=4 * 2**30, total_bytes=16 * 2**30, ratio=200.0)


def images(context: StageContext, images: ImagesPart, seed: int) -> Summary:
    """Write `images`, `captions`, `objects`, `drops` and the picture shards.

    Raises:
        PipelineError: Annotations are unreadable, or too many pictures are bad.
        StorageError: The source cannot be fetched or is an unsafe archive.
    """
    files = locate(context, images, seed)
    drops: list[dict[str, Any]] = []
    annotations = {split: _annotations(files.annotations, split, drops) for split in SPLITS}
    chosen = _choose(annotations, images, seed)
    rows = list(_ingest(context, files, chosen, images, seed, drops))
    good = {row["image_id"] for row in rows}
    _refuse_too_many_bad(len(chosen), len(good), images.max_bad_share, drops)
    wanted = {record["id"] for record in chosen}
    captions = [row for split in SPLITS for row in _captions(annotations[split], wanted, drops)]
    objects = [row for split in SPLITS for row in _objects(annotations[split], good, drops)]
    write_table(context.out / "images.parquet", rows, IMAGES)
    write_table(context.out / "captions.parquet", captions, CAPTIONS)
    write_table(context.out / "objects.parquet", objects, OBJECTS)
    write_table(context.out / "drops.parquet", drops, DROPS)
    return {
        "images": len(rows),
        "captions": len(captions),
        "objects": len(objects),
        "quarantined": len(chosen) - len(good),
    }


def split_of(origin: str, image_id: int, validation_share: float, seed: int) -> str:
    """Return the split of an image: val2017 is the test split, train2017 is divided by id.

    The hash makes the choice independent of which other images there are, so a growing dataset
    never moves an image between splits.
    """
    if origin == "val2017":
        return "test"
    return "validation" if _draw("split", image_id, seed) < validation_share else "train"


def _draw(purpose: str, image_id: int, seed: int) -> float:
    text = f"{purpose}:{seed}:{image_id}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def _annotations(path: Path, split: str, drops: list[dict]) -> dict[str, list[dict[str, Any]]]:
    """Return images, captions, boxes and categories of one split; boxes may be absent."""
    with open_archive(path, limits=JSON_LIMITS) as archive:
        captions = _json(archive, path, f"captions_{split}.json", required=True)
        instances = _json(archive, path, f"instances_{split}.json", required=False)
    unique: dict[int, dict[str, Any]] = {}
    for record in (*captions.get("images", ()), *instances.get("images", ())):
        if _is_image(record):
            unique.setdefault(record["id"], {**record, "origin": split})
        else:
            drops.append(drop("images", "image", "", str(path), "broken record", repr(record)))
    return {
        "images": [unique[key] for key in sorted(unique)],
        "captions": list(captions.get("annotations", ())),
        "objects": list(instances.get("annotations", ())),
        "categories": list(instances.get("categories", ())),
    }


def _is_image(record: object) -> bool:
    return (
        isinstance(record, dict) and is_int64(record.get("id")) and is_text(record.get("file_name"))
    )


def _json(archive: Archive, path: Path, name: str, *, required: bool) -> dict[str, Any]:
    found = [member for member in archive.names() if member.rsplit("/", 1)[-1] == name]
    if not found:
        if required:
            raise PipelineError(f"{path} holds no {name}", "COCO's annotation files are needed")
        return {}
    try:
        value = json.loads(archive.read(found[0]))
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


def _choose(
    annotations: Mapping[str, Mapping[str, list[dict]]], images: ImagesPart, seed: int
) -> list[dict[str, Any]]:
    """Return the chosen image records by id; a larger limit keeps all that a smaller one chose."""
    chosen = []
    for origin, limit in zip(SPLITS, (images.limit, images.test_limit), strict=True):
        ranked = sorted(
            annotations[origin]["images"], key=lambda r: (_draw("subset", r["id"], seed), r["id"])
        )
        chosen += ranked[:limit]
    train = {r["id"] for r in chosen if r["origin"] == "train2017"}
    clash = sorted(r["id"] for r in chosen if r["origin"] == "val2017" and r["id"] in train)
    if clash:
        raise PipelineError(
            f"image ids {clash[:5]} are in train2017 and in val2017",
            "test images must not be trained on: give them ids of their own",
        )
    return sorted(chosen, key=lambda record: record["id"])


def _ingest(
    context: StageContext,
    files: CocoFiles,
    chosen: list[dict[str, Any]],
    images: ImagesPart,
    seed: int,
    drops: list[dict],
) -> Iterator[dict[str, Any]]:
    """Yield a row per usable picture, writing the pictures' bytes on the way."""
    limits = ArchiveLimits(
        members=400_000, member_bytes=images.max_bytes, total_bytes=256 * 2**30, ratio=200.0
    )
    shards = _PictureShards(context.out)
    with ExitStack() as stack:
        readers = {
            origin: _Reader(stack.enter_context(open_archive(files.images[origin], limits=limits)))
            for origin in SPLITS
        }
        tick = stack.enter_context(context.report.track("check pictures", len(chosen)))
        for record in chosen:
            tick()
            try:
                data = readers[record["origin"]].read(record["file_name"])
                picture = decode_image(data, images.max_pixels)
            except (BadImageError, StorageError) as error:
                key, name = record["id"], record["file_name"]
                drops.append(drop("images", "image", key, name, *_reason(error)))
                continue
            row = _row(record, data, picture.size, images.validation_share, seed)
            shards.add(row["sha256"], data)
            yield row
    shards.flush()


class _Reader:
    """Finds a picture by its `file_name`, with or without the archive's leading folder."""

    def __init__(self, archive: Archive) -> None:
        self.archive, self.names = archive, set(archive.names())
        self.by_base = {name.rsplit("/", 1)[-1]: name for name in archive.names()}
        self.refused = {name.rsplit("/", 1)[-1]: why for name, why in archive.refused.items()}

    def read(self, file_name: str) -> bytes:
        name = resolve_member("images", file_name)
        found = name if name in self.names else self.by_base.get(name.rsplit("/", 1)[-1])
        if found is None:
            why = self.refused.get(name.rsplit("/", 1)[-1])
            raise BadImageError("file refused" if why else "file missing", why or name)
        return self.archive.read(found)


class _PictureShards:
    """Collects the pictures' own bytes into Parquet shards of about `SHARD_BYTES`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, bytes] = {}
        self.size = self.number = 0
        self.seen: set[str] = set()

    def add(self, sha256: str, data: bytes) -> None:
        if sha256 in self.seen:
            return
        self.seen.add(sha256)
        self.rows[sha256] = data
        self.size += len(data)
        if self.size >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.rows or not self.number:
            rows = ({"sha256": key, "data": data} for key, data in self.rows.items())
            write_table(self.folder / f"files-{self.number:05d}.parquet", rows, IMAGE_FILES)
            self.rows, self.size = {}, 0
            self.number += 1


def _reason(error: BadImageError | StorageError) -> tuple[str, str]:
    if isinstance(error, BadImageError):
        return error.reason, error.detail
    unsafe = isinstance(error, UnsafeArchiveError)
    return "unsafe file name" if unsafe else "unreadable member", str(error)


def _row(
    record: Mapping[str, Any], data: bytes, size: tuple[int, int], share: float, seed: int
) -> dict[str, Any]:
    return {
        "image_id": record["id"],
        "split": split_of(record["origin"], record["id"], share, seed),
        "origin": record["origin"],
        "file_name": record["file_name"],
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "width": size[0],
        "height": size[1],
        "url": url if is_text(url := record.get("coco_url", "")) else "",
    }


def _refuse_too_many_bad(
    chosen: int, good: int, limit: float, drops: Iterable[Mapping[str, Any]]
) -> None:
    if not good:
        raise PipelineError("no picture of the dataset can be used", _reasons(drops))
    if (chosen - good) / chosen > limit:
        raise PipelineError(
            f"{chosen - good} of {chosen} pictures are bad, above images.max_bad_share {limit}",
            f"{_reasons(drops)}; mend the source or raise the limit",
        )


def _reasons(drops: Iterable[Mapping[str, Any]]) -> str:
    counts = Counter(row["reason"] for row in drops if row["kind"] == "image")
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def _captions(
    split: Mapping[str, list[Any]], wanted: set[int], drops: list[dict]
) -> Iterator[dict[str, Any]]:
    """Yield the captions of all chosen pictures; `examples` drops those of quarantined ones."""
    for record in split["captions"]:
        match record:
            case {"id": key, "image_id": image, "caption": text} if (
                is_int64(key) and is_int64(image) and is_text(text)
            ):
                if image in wanted:
                    yield {"caption_id": key, "image_id": image, "caption": text}
            case _:
                drops.append(drop("images", "caption", "", "", "broken record", repr(record)))


def _objects(
    split: Mapping[str, list[Any]], good: set[int], drops: list[dict]
) -> Iterator[dict[str, Any]]:
    names = {
        found["id"]: found["name"]
        for found in split["categories"]
        if isinstance(found, dict) and is_int64(found.get("id")) and is_text(found.get("name"))
    }
    for record in split["objects"]:
        match record:
            case {"id": key, "image_id": image, "category_id": category, "bbox": [x, y, w, h]} if (
                all(map(is_int64, (key, image, category)))
                and category in names
                and all(map(is_number, (x, y, w, h, record.get("area", 0))))
            ):
                if image in good:
                    yield {
                        "object_id": key,
                        "image_id": image,
                        "category": names[category],
                        "x": float(x),
                        "y": float(y),
                        "width": float(w),
                        "height": float(h),
                        "area": float(record.get("area", 0)),
                        "iscrowd": bool(record.get("iscrowd", 0)),
                    }
            case _:
                drops.append(drop("images", "object", "", "", "broken record", repr(record)))
