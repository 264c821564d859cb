"""Stage `images`: a COCO-format dataset becomes tables and shards of pictures that all decode.

Each picture is read once, decoded once to prove that it can be, and kept as its original bytes.
What cannot be used is quarantined in `drops` with its file, its record and the reason; its bytes
are kept apart.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from model.decoding import BadImageError, decode_image
from pipeline.annotations import Annotations, captions_of, objects_of
from pipeline.errors import PipelineError
from pipeline.picture_files import PictureFinder, Pictures, picture_limits
from pipeline.quarantine import Quarantine
from pipeline.recipe_parts import ImagesPart
from pipeline.schemas import CAPTIONS, DROPS, IMAGE_FILES, IMAGES, OBJECTS, drop
from pipeline.sources import TEST_ORIGINS, fetch_pictures, read_annotations
from pipeline.stage import StageContext, Summary
from storage.archive_group import ArchiveGroup
from storage.errors import StorageError, UnsafeArchiveError
from storage.tables import is_text, write_table

SHARD_BYTES = 256 * 2**20


def images(context: StageContext, images: ImagesPart, seed: int) -> Summary:
    """Write `images`, `captions`, `objects`, `drops` and the picture shards.

    Raises:
        PipelineError: Annotations are unreadable, or too many pictures are bad.
        StorageError: The source cannot be fetched or is an unsafe archive.
    """
    drops: list[dict[str, Any]] = []
    annotations = read_annotations(context, images, seed, drops)
    chosen = _choose(annotations, images, seed)
    by_origin = {o: [r for r in chosen if r["origin"] == o] for o in annotations}
    pictures = fetch_pictures(context, images, by_origin)
    bad: list[dict[str, Any]] = []
    rows = list(_ingest(context, pictures, chosen, images, seed, bad))
    good = {row["image_id"] for row in rows}
    _refuse_too_many_bad(context, len(chosen), len(good), images.max_bad_share, bad)
    drops += bad
    wanted = {record["id"] for record in chosen}
    captions = [row for found in annotations.values() for row in captions_of(found, wanted, drops)]
    objects = [row for found in annotations.values() for row in objects_of(found, good, drops)]
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
    """Return the split of an image: val2017 is the test split, other origins are divided by id.

    The hash makes the choice independent of which other images there are, so a growing dataset
    never moves an image between splits.
    """
    if origin in TEST_ORIGINS:
        return "test"
    return "validation" if _draw("split", image_id, seed) < validation_share else "train"


def _draw(purpose: str, image_id: int, seed: int) -> float:
    text = f"{purpose}:{seed}:{image_id}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def _choose(
    annotations: Mapping[str, Annotations], images: ImagesPart, seed: int
) -> list[dict[str, Any]]:
    """Return the chosen image records by id; a larger limit keeps all that a smaller one chose."""
    chosen = []
    limits = (images.limit, images.test_limit)
    for found, limit in zip(annotations.values(), limits, strict=True):
        ranked = sorted(found.images, key=lambda r: (_draw("subset", r["id"], seed), r["id"]))
        chosen += ranked[:limit]
    train = {r["id"] for r in chosen if r["origin"] not in TEST_ORIGINS}
    clash = sorted(r["id"] for r in chosen if r["origin"] in TEST_ORIGINS and r["id"] in train)
    if clash:
        raise PipelineError(
            f"image ids {clash[:5]} are in {' and in '.join(annotations)}",
            "test images must not be trained on: give them ids of their own",
        )
    return sorted(chosen, key=lambda record: record["id"])


def _ingest(
    context: StageContext,
    pictures: Mapping[str, Pictures],
    chosen: list[dict[str, Any]],
    images: ImagesPart,
    seed: int,
    drops: list[dict],
) -> Iterator[dict[str, Any]]:
    """Yield a row per usable picture, writing the pictures' bytes on the way."""
    limits = picture_limits(images.max_bytes)
    shards, quarantine = _PictureShards(context.out), Quarantine()
    with ExitStack() as stack:
        finders: dict[tuple[Path, ...], PictureFinder] = {}
        for known in pictures.values():
            if known.paths not in finders:
                archive = stack.enter_context(ArchiveGroup(known.paths, limits))
                finders[known.paths] = PictureFinder(archive, known)
        tick = stack.enter_context(context.report.track("check pictures", len(chosen)))
        for record in chosen:  # threads gain nothing: Pillow decodes under the interpreter's lock
            tick()
            data = b""
            try:
                data = finders[pictures[record["origin"]].paths].read(record["file_name"])
                picture = decode_image(data, images.max_pixels)
            except (BadImageError, StorageError) as error:
                key, name = record["id"], record["file_name"]
                drops.append(drop("images", "image", key, name, *_reason(error)))
                quarantine.add(record, data)
                continue
            row = _row(record, data, picture.size, images.validation_share, seed)
            shards.add(row["sha256"], data)
            yield row
    shards.flush()
    quarantine.write(context.out)


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
    context: StageContext, chosen: int, good: int, limit: float, bad: list[dict[str, Any]]
) -> None:
    """Raise where too many pictures are bad, after writing down which.

    Nothing of the stage becomes visible then, so the table lies beside what a kill would leave.
    """
    if good and (chosen - good) / chosen <= limit:
        return
    path = (context.scratch / "bad_pictures.csv").resolve()
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, DROPS.names)
        table.writeheader()
        table.writerows(bad)
    told = f"{_reasons(bad)}; {path} names each"
    if not good:
        raise PipelineError("no picture of the dataset can be used", told)
    raise PipelineError(
        f"{chosen - good} of {chosen} pictures are bad, above images.max_bad_share {limit}",
        f"{told}; mend the source or raise the limit",
    )


def _reasons(drops: Iterable[Mapping[str, Any]]) -> str:
    counts = Counter(row["reason"] for row in drops if row["kind"] == "image")
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
