"""Stage `images`: a COCO-format dataset becomes tables and shards of images that all decode.

Each image is decoded once as a check, here or in other processes, and kept as its original bytes.
Unusable images are quarantined in `drops` with file, record and reason; their bytes are kept apart.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.decoding import BadImageError
from pipeline.data.annotations import BROKEN, Annotations, captions_of, objects_of
from pipeline.data.draws import draw, rank
from pipeline.data.image_checks import Checked, CheckJob, CheckWork, check, spread_checks
from pipeline.data.image_files import ImageFiles, ImageFinder, Members, image_limits
from pipeline.data.image_shards import ImageShards
from pipeline.data.quarantine import Quarantine
from pipeline.data.schemas import CAPTIONS, DROPS, IMAGES, OBJECTS, drop
from pipeline.engine.stage import StageContext, Summary
from pipeline.errors import PipelineError
from pipeline.recipe.parts import ImagesPart
from storage.archives.archive_group import open_archives
from storage.errors import StorageError, UnsafeArchiveError
from storage.tables import collect, is_text, write_arrow, write_pieces, write_table

_AT_ONCE = 1024  # images that one of several processes checks at once, some seconds of work
_TABLES = {"image": "bad_images.csv", "caption": "bad_captions.csv"}  # for people, by kind
_SHOWN = 120  # characters of the first fault


def images(context: StageContext, images: ImagesPart, seed: int) -> Summary:
    """Write `images`, `captions`, `objects`, `drops` and the image shards.

    Raises:
        PipelineError: Annotations are unreadable, or too many images are bad.
        StorageError: The source cannot be fetched or is an unsafe archive.
    """
    drops: list[dict[str, Any]] = []
    dataset = import_module(images.source.module)
    annotations: dict[str, Annotations] = dataset.read(context, images, seed, drops)
    tests = {origin for origin, of_origin in annotations.items() if of_origin.test}
    chosen = _choose(annotations, images, seed)
    by_origin = {o: [r for r in chosen if r["origin"] == o] for o in annotations}
    files: Mapping[str, ImageFiles] = dataset.fetch(context, images, by_origin)
    bad: list[dict[str, Any]] = []
    usable = _ingest(context, files, chosen, images, bad)
    rows = collect("images.parquet", usable, IMAGES)
    divided = {r.get("source") for r in chosen if r.get("split") == "validation"}
    named = {r["id"]: r["split"] for r in chosen if "split" in r and r.get("source") in divided}
    splits = _splits(rows, tests, named, images.validation_share, seed)
    rows = rows.set_column(IMAGES.get_field_index("split"), IMAGES.field("split"), splits)
    good = set(rows["image_id"].to_pylist())
    _refuse_too_many_bad(context, len(chosen), len(good), images.max_bad_share, bad or drops)
    _refuse_silence(context, annotations, drops)
    drops += bad
    write_arrow(context.out / "images.parquet", rows)
    captions = captions_of(annotations.values(), {record["id"] for record in chosen})
    captioned = write_pieces(context.out / "captions.parquet", captions, CAPTIONS)
    objects = objects_of(annotations.values(), good)
    boxed = write_pieces(context.out / "objects.parquet", objects, OBJECTS)
    write_table(context.out / "drops.parquet", drops, DROPS)
    return {
        "images": len(rows),
        "captions": captioned,
        "objects": boxed,
        "quarantined": len(chosen) - len(good),
    }


def split_of(image_id: int, validation_share: float, seed: int) -> str:
    """Return the split of an image that is not a test image.

    The hash makes the choice independent of which other images there are, so a growing dataset
    never moves an image between splits.
    """
    return "validation" if draw("split", image_id, seed) < validation_share else "train"


def _splits(
    rows: pa.Table,
    tests: Collection[str],
    named: Mapping[int, str],
    validation_share: float,
    seed: int,
) -> pa.Array:
    """Return the split of every row; images of equal content share it, whatever ids and names.

    Where a source names validation images, exactly these are its validation split.

    Among equal images, the one that `images.limit` would choose first decides, so that a larger
    limit moves none of them.
    """
    ids, contents = rows["image_id"].to_pylist(), rows["sha256"].to_pylist()
    is_test = [origin in tests for origin in rows["origin"].to_pylist()]
    deciding: dict[str, int] = {}
    for at in sorted(range(len(rows)), key=lambda at: rank(ids[at], seed)):
        if not is_test[at]:
            deciding.setdefault(contents[at], ids[at])

    def split(at: int) -> str:
        if is_test[at]:
            return "test"
        one = deciding[contents[at]]
        return named.get(one) or split_of(one, validation_share, seed)

    return pa.array(map(split, range(len(rows))), pa.string())


def _choose(
    annotations: Mapping[str, Annotations], images: ImagesPart, seed: int
) -> list[dict[str, Any]]:
    """Return the chosen image records by id; a larger limit keeps all that a smaller one chose."""
    train, test = (
        sorted(
            (
                record
                for of_origin in annotations.values()
                if of_origin.test == test
                for record in of_origin.images
            ),
            key=lambda record: rank(record["id"], seed),
        )[:limit]
        for test, limit in ((False, images.limit), (True, images.test_limit))
    )
    if clash := sorted({record["id"] for record in train} & {record["id"] for record in test}):
        raise PipelineError(
            f"image ids {clash[:5]} are in {' and in '.join(annotations)}",
            "test images must not be trained on: give them different ids",
        )
    return sorted([*train, *test], key=lambda record: record["id"])


def _ingest(
    context: StageContext,
    files: Mapping[str, ImageFiles],
    chosen: list[dict[str, Any]],
    images: ImagesPart,
    drops: list[dict],
) -> Iterator[dict[str, Any]]:
    """Yield a row per usable image, still without its split; write the images' bytes to shards."""
    shards, quarantine = ImageShards(context.out, images.max_bytes), Quarantine()
    unread = 0  # by the processes that should have checked them
    with ExitStack() as stack:
        finders = _finders(stack, files, images.max_bytes)
        pieces = _with_checks(context, finders, chosen, images)
        tick = stack.enter_context(context.report.track("check images", len(chosen)))
        for record, checks in pieces:  # threads gain nothing: Pillow decodes under Python's lock
            tick()
            data = b""
            try:
                data = finders[record["origin"]].read(record["file_name"])
                sha256 = hashlib.sha256(data).hexdigest()
                known = checks.get(sha256) if checks is not None else None
                unread += checks is not None and known is None
                size = (known or check(data, images.max_pixels)).size()
            except (BadImageError, StorageError) as error:
                key, name = record["id"], record["file_name"]
                drops.append(drop("images", "image", key, name, *_reason(error)))
                quarantine.add(record, data)
                continue
            shards.add(sha256, data)
            yield _row(record, images.source.kind, sha256, len(data), size)
    shards.flush()
    quarantine.write(context.out)
    if unread:
        context.report.say(
            f"  {unread} images decoded here: workers could not read them, or read other bytes"
        )


def _finders(
    stack: ExitStack, files: Mapping[str, ImageFiles], max_bytes: int
) -> dict[str, ImageFinder]:
    """Return what finds the images of each origin; origins in the same archives share it."""
    limits, opened = image_limits(max_bytes), dict[tuple[Path, ...], ImageFinder]()
    for known in files.values():
        if known.paths not in opened:
            archive = stack.enter_context(open_archives(known.paths, limits, own=known.own))
            opened[known.paths] = ImageFinder(archive, known)
    return {origin: opened[known.paths] for origin, known in files.items()}


def _with_checks(
    context: StageContext,
    finders: Mapping[str, ImageFinder],
    chosen: list[dict[str, Any]],
    images: ImagesPart,
) -> Iterator[tuple[dict[str, Any], Mapping[str, Checked] | None]]:
    """Yield each record with what other processes found, by content; None if none is asked."""
    if context.fan_out is None or len(chosen) <= _AT_ONCE:
        yield from ((record, None) for record in chosen)
        return
    pieces = [chosen[at : at + _AT_ONCE] for at in range(0, len(chosen), _AT_ONCE)]
    jobs = [CheckJob(number, _members(finders, some)) for number, some in enumerate(pieces)]
    work = CheckWork(context.scratch.absolute(), images.max_bytes, images.max_pixels)
    for some, checks in zip(pieces, spread_checks(context, work, jobs), strict=True):
        yield from ((record, checks) for record in some)


def _members(
    finders: Mapping[str, ImageFinder], records: Iterable[Mapping[str, Any]]
) -> list[Members]:
    """Return where the images of some records are."""
    names: dict[str, list[str]] = {}
    for record in records:
        names.setdefault(record["origin"], []).append(record["file_name"])
    return [finders[origin].locate(of_origin) for origin, of_origin in names.items()]


def _reason(error: BadImageError | StorageError) -> tuple[str, str]:
    if isinstance(error, BadImageError):
        return error.reason, error.detail
    unsafe = isinstance(error, UnsafeArchiveError)
    return "unsafe file name" if unsafe else "unreadable member", error.message


def _row(
    record: Mapping[str, Any], kind: str, sha256: str, length: int, size: tuple[int, int]
) -> dict[str, Any]:
    return {
        "image_id": record["id"],
        "source": record.get("source", kind),
        "origin": record["origin"],
        "file_name": record["file_name"],
        "sha256": sha256,
        "bytes": length,
        "width": size[0],
        "height": size[1],
        "url": url if is_text(url := record.get("coco_url", "")) else "",
    }


def _refuse_too_many_bad(
    context: StageContext, chosen: int, good: int, limit: float, bad: list[dict[str, Any]]
) -> None:
    """Raise if too many images are bad, after listing them in a file."""
    if good and (chosen - good) / chosen <= limit:
        return
    summary = _written_down(context, "image", bad)
    if not good:
        raise PipelineError("no image of the dataset can be used", summary)
    raise PipelineError(
        f"{chosen - good} of {chosen} images are bad, above images.max_bad_share {limit}",
        f"{summary}; fix the source or raise the limit",
    )


def _refuse_silence(
    context: StageContext, annotations: Mapping[str, Annotations], drops: list[dict[str, Any]]
) -> None:
    """Raise if an origin has captions but none of them can be read."""
    for origin in (
        origin for origin, of_origin in annotations.items() if not len(of_origin.captions)
    ):
        broken = [
            row
            for row in drops
            if (row["kind"], row["reason"]) == ("caption", BROKEN)
            and all(part in row["file"] for part in origin.split("/"))
        ]
        if broken:
            summary = _written_down(context, "caption", broken)
            raise PipelineError(f"no caption of {origin} can be used", summary)


def _written_down(context: StageContext, kind: str, drops: list[dict[str, Any]]) -> str:
    """List the drops in a CSV file, and return a summary with its path.

    The stage fails afterwards and publishes nothing, so the file is in the scratch folder.
    """
    path = (context.scratch / _TABLES[kind]).resolve()
    rows = [row for row in drops if row["kind"] == kind]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        table = csv.DictWriter(stream, DROPS.names)
        table.writeheader()
        table.writerows(rows)
    counts = Counter(row["reason"] for row in rows)
    reasons = [f"{count} {reason}" for reason, count in counts.most_common()]
    if rows:
        first = rows[0]
        place = f"{first['file']} {first['record']}: " if first["reason"] == BROKEN else ""
        detail = first["detail"][:_SHOWN] or first["file"]
        reasons.append(f"the first: {place}{detail}")
    return f"{', '.join(reasons) or 'no image is listed'}; {path} lists them all"
