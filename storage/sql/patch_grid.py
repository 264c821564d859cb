"""The SQL function `patch_grid`: a row of the view `patches` as a list of patch vectors."""

from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import PythonUDFType

SHAPE = b"phivision.shape"  # in the schema of every patches file: patches, then width


def shape_of(schemas: Sequence[pa.Schema]) -> tuple[int, int] | None:
    """Return [patch, width] of the first schema that holds it, or None."""
    for schema in schemas:
        text = (schema.metadata or {}).get(SHAPE, b"").decode()
        if text:
            patch, width = map(int, text.split(","))
            return patch, width
    return None


def add_patch_grid(connection: duckdb.DuckDBPyConnection, shape: tuple[int, int]) -> None:
    """Define `patch_grid(BLOB) → FLOAT[][]`, a list of patches, each a list of its values.

    It is computed by numpy on whole columns: DuckDB has no float16, and undoing one value by
    value in SQL takes hundreds of times as long. A BLOB of another size is an error, NULL is NULL.

    Args:
        connection: Where to define it.
        shape: Patches and their width in a BLOB of float16.
    """

    def grids(blobs: Any) -> pa.ListArray:
        return _grids(blobs, shape)

    connection.create_function(
        "patch_grid",
        grids,
        [duckdb.sqltype("BLOB")],
        duckdb.sqltype("FLOAT[][]"),
        type=PythonUDFType.ARROW,
    )


def _grids(blobs: Any, shape: tuple[int, int]) -> pa.ListArray:
    column = blobs.combine_chunks() if isinstance(blobs, pa.ChunkedArray) else blobs
    patch, width = shape
    for blob in column.drop_null():
        if len(blob.as_buffer()) != 2 * patch * width:
            found = len(blob.as_buffer())
            raise ValueError(f"patch_grid takes {2 * patch * width} bytes, not {found}")
    whole = b"".join(blob.as_buffer() for blob in column.drop_null())
    values = pa.array(np.frombuffer(whole, "<f2").astype(np.float32))
    vectors = pa.ListArray.from_arrays(
        pa.array(np.arange(0, len(values) + 1, width, dtype=np.int32)), values
    )
    present = column.is_valid().to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(present) * patch]).astype(np.int32)
    missing = None if present.all() else pa.array(~present)
    return pa.ListArray.from_arrays(pa.array(ends), vectors, mask=missing)
