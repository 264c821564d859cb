"""Stage `features`: frozen patch embeddings of every image, in shards committed one by one."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from model.encoder_table import SECOND
from model.text_encoder import TextEncoder
from pipeline.data.stored_images import JOINED, has_second
from pipeline.engine.devices import pick_device
from pipeline.engine.precision import settle_precision
from pipeline.engine.stage import StageContext, Summary
from pipeline.features.clip_scores import CLIP_SCORES, clip_scores
from pipeline.features.extraction import (
    Extraction,
    ImageFile,
    ShardJob,
    check_grid,
    make_shard,
    make_shards,
    one_image,
    open_encoder,
    row_key,
)
from pipeline.features.known_rows import find_known
from pipeline.features.nearest import nearest_images
from pipeline.recipe.parts import FeaturesPart
from storage.features.shards import ShardError, shard_paths, verify_shard
from storage.tables import read_table, write_arrow

COLUMNS = ("sha256", "image_id", "width", "height", "split")


def features(context: StageContext, features: FeaturesPart, seed: int) -> Summary:
    """Write the shards `index-*.parquet` and `patches-*.parquet`, and what is computed from them.

    That is `nearest.parquet` and `clip_scores.parquet`, which has no rows unless the recipe asks
    for scores. The shards of a second encoder are in `second/`, each encoder's with the grid that
    it gives; `joined.json` says to which grid they are resampled when they are read.

    A killed run resumes at the first incomplete shard, and an image that an encoder has embedded
    in any earlier artifact of the store is not embedded by it again.

    Raises:
        PipelineError: The encoder gives another number of patches than the recipe says, or one of
            two encoders gives no square grid.
        ModelError: Captions are to be scored, and the encoder has no text tower.
    """
    del seed  # nothing is random
    rows, joined = _unique(context), has_second(context.inputs["backbones"])
    first, stated = _extraction(context, features, "clip", joined=joined)
    other, also = _extraction(context, features, SECOND, joined=True) if joined else (None, {})
    if other:
        check_grid(other)
    made = _embed_all(context, first, rows, features.rows_per_shard)
    _link(made, context.out)
    summary = {
        "images": len(rows),
        "embedded": made.embedded,
        "shards": len(made.shards),
        "encoder": made.encoder[:16],
        **stated,
        **{f"second_{name}": value for name, value in also.items()},
    }
    if other:
        second = _embed_all(context, other, rows, features.rows_per_shard)
        _link(second, context.out / SECOND)
        (context.out / JOINED).write_text(json.dumps({"patches": features.patches}))
        summary |= {"second_embedded": second.embedded, "second_encoder": second.encoder[:16]}
    indexes = [index for index, _ in made.shards]
    _compare(context, first, indexes, len(rows), features.clip_scores)
    size = sum(path.stat().st_size for path in context.out.rglob("*") if path.is_file())
    return {**summary, "bytes": size}


class _Made(NamedTuple):
    """One encoder's shards (index and patches files), their key, and how many rows are new."""

    shards: list[tuple[Path, Path]]
    encoder: str
    embedded: int


def _link(made: _Made, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in (path for both in made.shards for path in both):
        os.link(path, folder / path.name)


def _extraction(
    context: StageContext, features: FeaturesPart, folder: str, *, joined: bool
) -> tuple[Extraction, dict[str, Any]]:
    """Return how the encoder of a folder of `backbones` embeds images, and what is stated of it."""
    is_second = folder == SECOND
    extraction = Extraction(
        clip=context.inputs["backbones"].directory(folder),
        layer=features.second_layer if is_second else features.layer,
        batch=features.batch,
        patches=None if joined else features.patches,
        device=pick_device(context.settings),
        threads=context.settings.threads,
        folder=context.scratch / (f"{SECOND}-shards" if is_second else "shards"),
    )
    settled = settle_precision(
        features.precision, context, partial(one_image, extraction), f"precision-{folder}"
    )
    return replace(extraction, precision=settled.precision), settled.stated


def _embed_all(
    context: StageContext, extraction: Extraction, rows: Sequence[dict[str, Any]], size: int
) -> _Made:
    """Make all shards of an encoder, `size` images in each, as far as they are not there."""
    encoder = row_key(open_encoder(extraction), extraction.batch)
    _remove_torn(extraction.folder)
    jobs = _jobs(context, extraction, encoder, rows, size)
    embedded = sum(len(job.missing) for job in jobs)
    _make(context, extraction, jobs, len(rows), embedded)
    open_encoder.cache_clear()  # what comes next in this process needs the memory
    shards = -(-len(rows) // size)
    paths = [shard_paths(extraction.folder, number) for number in range(shards)]
    return _Made(paths, encoder, embedded)


def _compare(
    context: StageContext, extraction: Extraction, indexes: list[Path], images: int, scored: bool
) -> None:
    """Write what is computed from pooled embeddings."""
    with context.report.track("compare images", images) as tick:
        nearest = nearest_images(indexes, extraction.device, tick)
    write_arrow(context.out / "nearest.parquet", nearest)
    scores = _clip_scores(context, extraction, indexes) if scored else CLIP_SCORES.empty_table()
    write_arrow(context.out / "clip_scores.parquet", scores)


def _clip_scores(
    context: StageContext, extraction: Extraction, indexes: Sequence[Path]
) -> pa.Table:
    images = context.inputs["images"]
    table = read_table(images.path("images.parquet"), ["image_id", "sha256"])
    by_id = dict(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    captions = read_table(images.path("captions.parquet"))
    readable = [image_id in by_id for image_id in captions["image_id"].to_pylist()]
    captions = captions.filter(pa.array(readable, pa.bool_()))
    hashes = [by_id[image_id] for image_id in captions["image_id"].to_pylist()]
    encoder = TextEncoder(extraction.clip, extraction.device)
    with context.report.track("score captions", len(captions)) as tick:
        return clip_scores(captions, hashes, indexes, encoder, tick)


def _remove_torn(folder: Path) -> None:
    """Remove the partial files of killed writers, which may be hundreds of MB per shard."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _make(
    context: StageContext, extraction: Extraction, jobs: Sequence[ShardJob], images: int, left: int
) -> None:
    """Make all shards here, or spread them over other processes."""
    which = ", second encoder" if extraction.clip.name == SECOND else ""
    with context.report.track(f"embed images{which}", images, images - left) as tick:
        if context.fan_out is None or not jobs:
            make_shards(extraction, jobs, tick)
            return
        for done in context.fan_out(partial(make_shard, extraction), jobs):
            tick(done)


def _jobs(
    context: StageContext,
    extraction: Extraction,
    encoder: str,
    rows: Sequence[dict[str, Any]],
    size: int,
) -> list[ShardJob]:
    """Return the shards that do not exist yet, with the place of each image or known row."""
    shards = [rows[start : start + size] for start in range(0, len(rows), size)]
    missing = {
        number: shard
        for number, shard in enumerate(shards)
        if not _is_whole(context, extraction.folder, number)
    }
    wanted = {row["sha256"] for shard in missing.values() for row in shard}
    known = find_known(context.earlier() if wanted else (), encoder, wanted)
    if known:
        context.report.say(f"  {len(known)} of {len(rows)} images were embedded before")
    return [
        ShardJob(
            number,
            [{key: row[key] for key in COLUMNS} for row in shard],
            {row["sha256"]: known[row["sha256"]] for row in shard if row["sha256"] in known},
            {row["sha256"]: row["file"] for row in shard if row["sha256"] not in known},
        )
        for number, shard in missing.items()
    ]


def _is_whole(context: StageContext, folder: Path, number: int) -> bool:
    """Return whether a killed run left this shard, and it reads back as written."""
    if not shard_paths(folder, number)[0].is_file():
        return False
    try:
        verify_shard(folder, number)
    except ShardError as error:
        context.report.say(f"  shard {number} is made again: {error.message}")
        return False
    return True


def _unique(context: StageContext) -> list[dict[str, Any]]:
    """Return one row per image content, with its `file`, in the order of the image shards."""
    images = context.inputs["images"]
    files: dict[str, ImageFile] = {}
    for path in images.paths("files-*.parquet"):
        for row, sha256 in enumerate(read_table(path, ["sha256"])["sha256"].to_pylist()):
            files.setdefault(sha256, (path, row))
    by_hash: dict[str, dict[str, Any]] = {}
    for row in read_table(images.path("images.parquet")).to_pylist():
        by_hash.setdefault(row["sha256"], row | {"file": files[row["sha256"]]})
    return sorted(by_hash.values(), key=lambda row: row["file"])
