"""Stage `features`: frozen patch embeddings of every picture, in shards committed one by one."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.encoder import PatchEncoder
from pipeline.devices import pick_device
from pipeline.errors import PipelineError
from pipeline.pictures import pictures
from pipeline.recipe_parts import FeaturesPart
from pipeline.stage import StageContext, Summary
from storage.shards import ShardRows, shard_paths, write_shard
from storage.tables import read_table

Picture = tuple[dict[str, Any], Image.Image]


def features(context: StageContext, features: FeaturesPart, seed: int) -> Summary:
    """Write the shards `index-*.parquet` and `patches-*.parquet`.

    A killed run resumes at the first shard that is not whole.

    Raises:
        PipelineError: The encoder gives another number of patches than the recipe says.
    """
    del seed  # no chance is involved
    device = pick_device(context.settings)
    folder = context.inputs["backbones"].directory("clip")
    encoder = PatchEncoder(folder, features.layer, device)
    rows = _unique(context)
    shards = [
        rows[start : start + features.rows_per_shard]
        for start in range(0, len(rows), features.rows_per_shard)
    ]
    finished = context.scratch / "shards"
    whole = {n for n in range(len(shards)) if shard_paths(finished, n)[0].is_file()}
    missing = [row for n, shard in enumerate(shards) if n not in whole for row in shard]
    with context.report.track("embed", len(rows), len(rows) - len(missing)) as tick:
        source = _open(context, missing)
        for number, shard in enumerate(shards):
            if number in whole:
                continue
            encoded = []
            for batch in _batches(source, len(shard), features.batch):
                encoded.append(_encode(encoder, batch, features.patches))
                tick(len(batch))
            write_shard(finished, number, _shard_rows(shard, encoded), encoder.fingerprint)
    for path in sorted(finished.iterdir()):
        os.link(path, context.out / path.name)
    return {
        "images": len(rows),
        "shards": len(shards),
        "encoder": encoder.fingerprint[:16],
        "bytes": sum(path.stat().st_size for path in context.out.iterdir()),
    }


def _unique(context: StageContext) -> list[dict[str, Any]]:
    """Return one row per picture content, in the order of the picture shards."""
    images = context.inputs["images"]
    by_hash: dict[str, dict[str, Any]] = {}
    for row in read_table(images.path("images.parquet")).to_pylist():
        by_hash.setdefault(row["sha256"], row)
    return list(by_hash.values())


def _open(context: StageContext, rows: list[dict[str, Any]]) -> Iterator[Picture]:
    wanted = {row["sha256"]: row for row in rows}
    for sha256, picture in pictures(context.inputs["images"], wanted):
        yield wanted[sha256], picture


def _batches(source: Iterator[Picture], count: int, size: int) -> Iterator[list[Picture]]:
    """Yield batches of the next `count` pictures; a batch never crosses a shard's end."""
    for start in range(0, count, size):
        yield [next(source) for _ in range(min(size, count - start))]


def _encode(
    encoder: PatchEncoder, batch: list[Picture], patches: int
) -> tuple[np.ndarray, np.ndarray]:
    found = encoder.encode_images([picture for _, picture in batch])
    if found.patches.shape[1] != patches:
        raise PipelineError(
            f"the encoder gives {found.patches.shape[1]} patches, features.patches says {patches}",
            f"set features.patches={found.patches.shape[1]}",
        )
    return found.patches.to(torch.float16).cpu().numpy(), found.pooled.cpu().numpy()


def _shard_rows(
    shard: list[dict[str, Any]], encoded: list[tuple[np.ndarray, np.ndarray]]
) -> ShardRows:
    return ShardRows(
        sha256=[row["sha256"] for row in shard],
        image_id=np.array([row["image_id"] for row in shard], np.int64),
        width=np.array([row["width"] for row in shard], np.int32),
        height=np.array([row["height"] for row in shard], np.int32),
        split=[row["split"] for row in shard],
        patches=np.concatenate([patches for patches, _ in encoded]),
        pooled=np.concatenate([pooled for _, pooled in encoded]),
    )
