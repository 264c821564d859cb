"""Making feature shards: decoding, encoding and writing at once, in this or any other process.

The invariant: a shard's bytes follow from its images and the encoder alone. Every forward pass
has the same size, so it does not matter which images share it, which process makes the shard, or
which of its rows were embedded before.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from model.decoding import decode_image
from model.encoder import PatchEncoder
from pipeline.data.stored_images import NO_LIMIT
from pipeline.engine.kept_memory import kept_memory
from pipeline.errors import PipelineError
from pipeline.features.known_rows import KnownRow, read_known
from storage.features.shards import ShardRows, publish_shard

STREAMED = 64  # rows of an image shard in memory at once

Shrunk = NDArray[np.uint8]  # [height, width, 3]
Embedded = tuple[NDArray[np.float16], NDArray[np.float32]]  # of one image
ImageFile = tuple[Path, int]  # a shard of images and the row in it


@dataclass(frozen=True)
class Extraction:
    """What all shards of one encoder have in common; it is sent to other processes.

    Attributes:
        clip: Folder of the encoder.
        layer: Layer whose output is kept, counted from the end.
        batch: Images per forward pass, at most.
        patches: Patches per image that the recipe expects; None where any square grid will do,
            because it is resampled when it is read.
        device: Where to compute.
        threads: CPU threads, None for all cores.
        folder: Where finished shards go; every process must see it.
        precision: Of the encoder, fp32 or bf16.
    """

    clip: Path
    layer: int
    batch: int
    patches: int | None
    device: str
    threads: int | None
    folder: Path
    precision: str = "fp32"


@dataclass(frozen=True)
class ShardJob:
    """One shard to be made.

    Attributes:
        number: Its number.
        rows: sha256, image_id, width, height and split of each row, in order.
        known: Where the embeddings of a content already are, by sha256.
        files: Where the images of the others are, by sha256.
    """

    number: int
    rows: Sequence[Mapping[str, Any]]
    known: Mapping[str, KnownRow]
    files: Mapping[str, ImageFile]

    @property
    def missing(self) -> list[int]:
        """Positions of the rows that must be computed."""
        return [at for at, row in enumerate(self.rows) if row["sha256"] not in self.known]


def make_shards(
    extraction: Extraction, jobs: Sequence[ShardJob], tick: Callable[[int], None]
) -> None:
    """Make shards one after the other; `tick` gets the number of images embedded.

    Threads decode ahead, and while a shard is written and checked the next one is computed. At
    most two shards are in memory. A batch may span two shards.

    Raises:
        PipelineError: The encoder gives another number of patches than the recipe says.
        ShardError: A shard cannot be written, or does not read back as it was written.
    """
    encoder = open_encoder(extraction)
    with ExitStack() as stack:
        stack.enter_context(kept_memory(extraction.device))
        decoders = stack.enter_context(ThreadPoolExecutor(decoding_threads(extraction)))
        writer = stack.enter_context(ThreadPoolExecutor(1))
        wanted = [job.files[job.rows[at]["sha256"]] for job in jobs for at in job.missing]
        images = _ahead(
            decoders,
            lambda data: encoder.shrink(decode_image(data, NO_LIMIT)),
            _read(wanted),
            2 * extraction.batch,
        )
        embedded = _embed(encoder, extraction, images, tick)
        key = row_key(encoder, extraction.batch)
        writing: Future[None] | None = None
        for job in jobs:
            rows = _collect(job, embedded)
            _check_patches(rows.patches.shape[1], extraction)  # of reused rows, too
            if writing is not None:
                writing.result()
            writing = writer.submit(publish_shard, extraction.folder, job.number, rows, key)
        if writing is not None:
            writing.result()


def make_shard(extraction: Extraction, job: ShardJob) -> int:
    """Make one shard, in a worker process, and return how many images were embedded."""
    if extraction.threads is not None:
        torch.set_num_threads(extraction.threads)
    make_shards(extraction, [job], lambda _: None)
    return len(job.missing)


@lru_cache(maxsize=1)  # a worker makes many shards with one encoder
def open_encoder(extraction: Extraction) -> PatchEncoder:
    """Return the encoder of an extraction, loaded once per process."""
    return PatchEncoder(extraction.clip, extraction.layer, extraction.device, extraction.precision)


def one_image(extraction: Extraction, precision: str) -> Callable[[], object]:
    """Return what embeds one image in a precision, to measure how long that takes."""
    encoder = PatchEncoder(extraction.clip, extraction.layer, extraction.device, precision)
    pixels = np.stack([encoder.shrink(Image.new("RGB", (64, 64)))])
    return lambda: encoder.encode_shrunk(pixels, 1)


def check_grid(extraction: Extraction) -> None:
    """Encode one black image, so that an encoder that does not fit fails before hours of work.

    Raises:
        PipelineError: Its number of patches does not fit.
        ModelError: It has no such layer, or gives no grid.
    """
    seen = open_encoder(extraction).encode_images([Image.new("RGB", (64, 64))])
    _check_patches(seen.patches.shape[1], extraction)


def _check_patches(given: int, extraction: Extraction) -> None:
    if extraction.patches is None:
        if isqrt(given) ** 2 != given:
            raise PipelineError(
                f"the encoder in {extraction.clip.name}/ gives {given} patches, which form no "
                "square grid, so it cannot be joined with another encoder",
                "choose an encoder of square images",
            )
    elif given != extraction.patches:
        raise PipelineError(
            f"the encoder gives {given} patches, features.patches says {extraction.patches}",
            f"set features.patches={given}",
        )


def row_key(encoder: PatchEncoder, batch: int) -> str:
    """Return a key for the exact bits that an encoder computes from an image.

    The size of the forward pass is part of it: a matrix product with another number of rows sums in
    another order, which was seen to change float16 bits of a small model. So is the kind of device,
    as devices round products differently.
    """
    kind = torch.device(encoder.device).type
    return hashlib.sha256(f"{encoder.fingerprint}/{batch}/{kind}".encode()).hexdigest()


def decoding_threads(extraction: Extraction) -> int:
    """Return how many threads decode: all cores for a GPU, a quarter if a CPU computes as well."""
    cores = extraction.threads or os.cpu_count() or 1
    return max(1, cores if extraction.device != "cpu" else cores // 4)


def _read(wanted: Sequence[ImageFile]) -> Iterator[bytes]:
    """Yield the bytes of images in order; rows of one image shard must be in rising order."""
    for path, group in groupby(wanted, key=lambda place: place[0]):
        rows, first = [row for _, row in group], 0
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            left = deque(rows)
            for batch in file.iter_batches(STREAMED, columns=["data"]):
                while left and left[0] < first + len(batch):
                    yield batch["data"][left.popleft() - first].as_py()
                first += len(batch)
                if not left:
                    break


def _ahead(
    pool: ThreadPoolExecutor,
    shrink: Callable[[bytes], Shrunk],
    source: Iterable[bytes],
    limit: int,
) -> Iterator[Shrunk]:
    """Yield decoded images in order, with up to `limit` in progress."""
    coming: deque[Future[Shrunk]] = deque()
    stream = iter(source)
    coming.extend(pool.submit(shrink, data) for data in islice(stream, limit))
    while coming:
        image = coming.popleft().result()
        coming.extend(pool.submit(shrink, data) for data in islice(stream, 1))
        yield image


def _embed(
    encoder: PatchEncoder,
    extraction: Extraction,
    images: Iterator[Shrunk],
    tick: Callable[[int], None],
) -> Iterator[Embedded]:
    """Yield patches [patch, width] and pooled embedding [pooled] of each image, in order."""
    while batch := list(islice(images, extraction.batch)):
        encoded = encoder.encode_shrunk(np.stack(batch), extraction.batch)
        _check_patches(encoded.patches.shape[1], extraction)
        half = encoded.patches.to(torch.float16).cpu().numpy()
        tick(len(batch))
        yield from zip(half, encoded.pooled.cpu().numpy(), strict=True)


def _collect(job: ShardJob, embedded: Iterator[Embedded]) -> ShardRows:
    """Return the rows of a shard, reused and computed, in its order."""
    known = [at for at, row in enumerate(job.rows) if row["sha256"] in job.known]
    reusable: dict[int, Embedded] = {}
    if known:
        reused = read_known([job.known[job.rows[at]["sha256"]] for at in known])
        reusable = dict(zip(known, zip(*reused, strict=True), strict=True))
    places = range(len(job.rows))
    both = [reusable[at] if at in reusable else next(embedded) for at in places]
    return _shard_rows(
        job, np.stack([patches for patches, _ in both]), np.stack([pooled for _, pooled in both])
    )


def _shard_rows(
    job: ShardJob, patches: NDArray[np.float16], pooled: NDArray[np.float32]
) -> ShardRows:
    rows = job.rows
    return ShardRows(
        sha256=[row["sha256"] for row in rows],
        image_id=np.array([row["image_id"] for row in rows], np.int64),
        width=np.array([row["width"] for row in rows], np.int32),
        height=np.array([row["height"] for row in rows], np.int32),
        split=[row["split"] for row in rows],
        pooled=pooled,
        patches=patches,
    )
