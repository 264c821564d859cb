"""One feature shard: an index and a patches file that hold the same images in one order.

The patches file has one column, laid out so that every row is at a computable byte offset (see
`storage.features.patches`). The invariant: the index is replaced last; where it exists, the shard
is whole.
"""

import errno
import math
import os
import re
import secrets
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.errors import StorageError

# Every option that shapes bytes is named, so that a new default of pyarrow cannot change them.
_LAYOUT = {
    "version": "2.6",
    "data_page_version": "1.0",
    "compression": "none",
    "column_encoding": "PLAIN",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_index": False,
    "write_page_checksum": True,
    "store_schema": True,
}
_GROUP_ROWS = 128  # rows of patches in a row group, which is one page with one checksum
_PAGE_LIMIT = 2**31 - 1  # a Parquet page header counts its bytes in a signed 32-bit integer
SHAPE = "phivision.shape"  # in the metadata of both files: patches, then their width
_METADATA = (SHAPE, "phivision.dtype", "phivision.encoder")


# Errors that do not mean that the file is damaged.
_REMEDY = "delete both files and write the shard again"
_NOT_THE_FILE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM})


class ShardError(StorageError):
    """A feature shard that cannot be written or read; the message names the file and a remedy."""


@dataclass(frozen=True, eq=False, slots=True)
class ShardRows:
    """The rows of one shard, one per image content, in the order in which they are stored.

    Attributes:
        sha256, split: Hex digests of the image files, lower case, each once; split names [image].
        image_id, width, height: Ids in the dataset, int64; sizes in pixels, int32 [image].
        pooled: The encoder's pooled embeddings, float32 [image, pooled].
        patches: The encoder's patch embeddings, float16 [image, patch, width].
    """

    sha256: Sequence[str]
    image_id: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    split: Sequence[str]
    pooled: NDArray[np.float32]
    patches: NDArray[np.float16]


def index_schema(pooled: int) -> pa.Schema:
    """Columns of an index file, whose pooled embeddings have `pooled` dimensions."""
    columns = {
        "sha256": pa.string(),
        "image_id": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "split": pa.string(),
        "pooled": pa.list_(pa.float32(), pooled),
        "patch_norm": pa.float32(),
        "shard": pa.int32(),
        "row": pa.int32(),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def shard_paths(folder: Path, number: int) -> tuple[Path, Path]:
    """Paths of a shard's index and patches files, in this order, as `PatchTable` takes them."""
    return folder / f"index-{number:05d}.parquet", folder / f"patches-{number:05d}.parquet"


@np.errstate(invalid="ignore")  # a signalling NaN gives a NaN, which callers check
def patch_norms(patches: NDArray[np.float16]) -> NDArray[np.float32]:
    """Mean L2 norm over each image's patches: float16 [image, patch, width] to float32 [image].

    Sums are taken in float64: their rounding is then far below float32's, so that machines with
    different vector units store the same value. A row with NaN or infinity gives NaN or infinity.
    """
    norms = np.empty(len(patches), np.float32)
    for at, row in enumerate(patches):
        wide = row.astype(np.float64)
        norms[at] = np.sqrt(np.square(wide).sum(axis=1)).mean()
    return norms


def write_shard(folder: Path, number: int, rows: ShardRows, encoder: str) -> None:
    """Write one shard atomically: equal rows give equal bytes, under one version of pyarrow.

    Raises:
        ShardError: Rows that disagree in length, shape or dtype, a value that is not finite, a
            malformed or repeated sha256. Nothing is written then.
        OSError: The file system refused; the folder holds no half-written shard.
    """
    _check_shapes(rows)
    norms = patch_norms(rows.patches)
    _check_finite(rows, norms)
    shape = ",".join(map(str, rows.patches.shape[1:]))
    metadata = dict(zip(_METADATA, (shape, "float16", encoder), strict=True))
    index = _index_table(rows, norms, number).replace_schema_metadata(metadata)
    patches = _patches_table(rows.patches).replace_schema_metadata(metadata)
    folder.mkdir(parents=True, exist_ok=True)
    index_path, patches_path = shard_paths(folder, number)
    with _staged(patches_path) as new_patches, _staged(index_path) as new_index:
        _write(patches, new_patches, _GROUP_ROWS)
        _write(index, new_index, max(len(norms), 1))
        # An old index must not stand beside new patches, not even if we are killed right here.
        index_path.unlink(missing_ok=True)
        new_patches.replace(patches_path)
        _sync(folder)
        new_index.replace(index_path)
        _sync(folder)


def publish_shard(folder: Path, number: int, rows: ShardRows, encoder: str) -> None:
    """Write one shard and read it back with page checksums; one that differs is removed.

    Takes the arguments of `write_shard`.

    Raises:
        ShardError: Rows that cannot be stored, or a shard that does not read back as written.
        OSError: The file system refused.
    """
    write_shard(folder, number, rows, encoder)
    try:
        verify_shard(folder, number)
    except ShardError:
        shard_paths(folder, number)[0].unlink(missing_ok=True)  # without it there is no shard
        raise


def verify_shard(folder: Path, number: int) -> None:
    """Read a whole shard with page checksums and compare index and patches.

    Every row must have the norm that the index holds for it, which also detects patches of
    another shard. Damage that changes no row, such as in the writer's name, is not detected.

    Raises:
        ShardError: A missing, truncated or altered file, or files that disagree.
    """
    index_path, patches_path = shard_paths(folder, number)
    index_file, patches, shape, _ = open_shard(index_path, patches_path)
    with reading(index_path):
        index = index_file.read()
        index.validate(full=True)
        schema = index_schema(getattr(index.schema.field("pooled").type, "list_size", 1))
        if index.schema != schema or not np.all(index["shard"].to_numpy() == number):
            raise ShardError(f"it is not the index of shard {number}")
    with reading(patches_path):
        _check_norms(patches, shape, index["patch_norm"].to_numpy())


def open_shard(
    index_path: Path, patches_path: Path
) -> tuple[pq.ParquetFile, pq.ParquetFile, tuple[int, int], str]:
    """Open both files and compare their footers; decoding either will verify page checksums.

    Returns:
        The index, the patches, the shape [patch, width] of a row, and the encoder's fingerprint.
        A writer may have dropped the metadata of one file: the other repeats them.

    Raises:
        ShardError: A file is missing or unreadable, or the two do not belong together.
    """
    with reading(index_path):
        index = pq.ParquetFile(index_path, page_checksum_verification=True)
        rows = index.metadata.num_rows
        if not np.array_equal(index.read(["row"])["row"].to_numpy(), np.arange(rows)):
            raise ShardError("its rows are not numbered 0, 1, 2 in order")
        repeated = index.schema_arrow.metadata or {}
    with reading(patches_path):
        patches = pq.ParquetFile(
            pa.BufferReader(mapped(patches_path)), page_checksum_verification=True
        )
        if patches.metadata.num_rows != rows:
            raise ShardError(f"{patches.metadata.num_rows} rows, but the index has {rows}")
        metadata = patches.schema_arrow.metadata or {}
        if repeated | metadata != metadata | repeated:
            raise ShardError("its metadata differ from the index's")
        metadata |= repeated
        shape, dtype, encoder = (metadata.get(key.encode(), b"").decode() for key in _METADATA)
        if dtype != "float16" or not re.fullmatch(r"[1-9]\d*,[1-9]\d*", shape):
            raise ShardError(f"its metadata say shape {shape!r}, dtype {dtype!r}")
    patch, width = map(int, shape.split(","))
    return index, patches, (patch, width), encoder


def mapped(path: Path) -> pa.Buffer:
    """Return the memory map of a file, which keeps no file open, unlike that of Python's `mmap`.

    A table of a thousand shards would otherwise exceed the limit of open files per process.
    """
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Turn errors while reading a shard's file into a `ShardError` that names the file.

    Raises:
        ShardError: The file is missing or damaged.
        OSError: No permission, no memory, or too many open files.
    """
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError, ShardError) as error:
        if isinstance(error, OSError) and error.errno in _NOT_THE_FILE:
            raise  # the handler that reports it has its own remedy
        raise ShardError(f"{path}: {error}", _REMEDY) from error


def read_group(file: pq.ParquetFile, group: int, width: int) -> NDArray[np.uint8]:
    """Decode one row group of a patches file, however it is encoded, to uint8 [row, width].

    Raises:
        ShardError: A row is null or missing. A `reading` block adds the file's name.
    """
    column = file.read_row_group(group, columns=["patches"])["patches"]
    # A damaged page header can make pyarrow return fewer rows, without an error.
    if column.null_count or len(column) != file.metadata.row_group(group).num_rows:
        raise ShardError(f"null or missing rows in row group {group}")
    # Other writers know only variable binary; the cast fails on a row of another size.
    fixed = column.cast(pa.binary(width)).combine_chunks()
    body = np.frombuffer(fixed.buffers()[1], np.uint8, len(fixed) * width, fixed.offset * width)
    return body.reshape(len(fixed), width)


def _check_shapes(rows: ShardRows) -> None:
    count = len(rows.sha256)
    for name, dtype, axes in (("patches", "float16", 3), ("pooled", "float32", 2)):
        array = getattr(rows, name)
        if array.dtype != dtype or array.ndim != axes or 0 in array.shape[1:]:
            given = f"{array.dtype} {list(array.shape)}"
            raise ShardError(f"{name} must be {dtype} with {axes} axes, not {given}")
    for field in fields(rows):
        if len(getattr(rows, field.name)) != count:
            raise ShardError(f"{field.name} has {len(getattr(rows, field.name))} rows, not {count}")
    if None in rows.split:
        raise ShardError("split has nulls")
    for key, times in Counter(rows.sha256).items():
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise ShardError(f"sha256 must be 64 lower-case hex digits, not {key!r}")
        if times > 1:
            raise ShardError(f"sha256 {key} occurs {times} times; keep one row per image content")
    if 2 * math.prod(rows.patches.shape[1:]) * _GROUP_ROWS > _PAGE_LIMIT:
        raise ShardError(f"{_GROUP_ROWS} rows of patches exceed 2 GiB, the limit of a page")


def _check_finite(rows: ShardRows, norms: NDArray[np.float32]) -> None:
    # A float16's square cannot overflow float64: the norm is finite exactly if every value is.
    good = np.isfinite(norms) & np.isfinite(rows.pooled).all(axis=1)
    if not good.all():
        first = rows.sha256[int(np.argmin(good))]
        raise ShardError(
            f"NaN or infinity in {np.count_nonzero(~good)} images, first in sha256 {first}; "
            "drop that image, or look for values beyond float16's 65,504"
        )


def _index_table(rows: ShardRows, norms: NDArray[np.float32], number: int) -> pa.Table:
    width = rows.pooled.shape[1]
    columns = [
        *(rows.sha256, rows.image_id, rows.width, rows.height, rows.split),
        pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(rows.pooled)), width),
        *(norms, np.full(len(norms), number), np.arange(len(norms))),
    ]
    schema = index_schema(width)
    try:
        return pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)
    except (pa.ArrowException, TypeError) as error:
        raise ShardError(f"rows that do not fit the index's columns: {error}") from error


def _patches_table(patches: NDArray[np.float16]) -> pa.Table:
    width = 2 * math.prod(patches.shape[1:])
    body = pa.py_buffer(np.ascontiguousarray(patches, "<f2"))
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(patches), [None, body])
    return pa.table([column], pa.schema([pa.field("patches", pa.binary(width), nullable=False)]))


@contextmanager
def _staged(path: Path) -> Generator[Path]:
    """A temporary name beside a file; a leftover file of that name is removed."""
    # Random, because two processes may write the same shard at once.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write(table: pa.Table, path: Path, group_rows: int) -> None:
    # By path: through a Python file object pyarrow copies every page once more.
    pq.write_table(table, path, row_group_size=group_rows, data_page_size=_PAGE_LIMIT, **_LAYOUT)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_norms(file: pq.ParquetFile, shape: tuple[int, int], norms: NDArray[np.float32]) -> None:
    start = 0
    for group in range(file.num_row_groups):
        body = read_group(file, group, 2 * math.prod(shape))
        computed = patch_norms(body.view("<f2").reshape(-1, *shape))
        # Another machine may sum in another order: 1e-6 is above that, far below any mix-up.
        same = np.isclose(computed, norms[start : start + len(computed)], rtol=1e-6, atol=0.0)
        if not same.all():
            row = start + int(np.argmin(same))
            raise ShardError(f"the patches of row {row} do not have the norm that the index holds")
        start += len(computed)
