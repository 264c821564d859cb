"""The SQL function `patch_grid`: a row of the view `patches` as a list of patch vectors."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import PythonUDFType

SHAPE = b"phivision.shape"  # in the schema of every patches file: patches, then width


def shapes_of(schemas: Sequence[pa.Schema]) -> list[tuple[int, int]]:
    """Return [patch, width] of the schemas that hold it, each once."""
    texts = [(schema.metadata or {}).get(SHAPE, b"").decode() for schema in schemas]
    shapes = [tuple(map(int, text.split(","))) for text in texts if text]
    return list(dict.fromkeys((patch, width) for patch, width in shapes))


def add_patch_grid(
    connection: duckdb.DuckDBPyConnection, shapes: Sequence[tuple[int, int]]
) -> None:
    """Define `patch_grid(BLOB) → FLOAT[][]`, a list of patches, each a list of its values.

    It is computed by numpy on whole columns: DuckDB has no float16, and undoing one value by
    value in SQL takes hundreds of times as long. A BLOB of another size is an error, NULL is NULL.

    Args:
        connection: Where to define it.
        shapes: Patches and their width in a BLOB of float16; where there are several, as of two
            encoders, the size of a BLOB tells which, and one that fits two shapes is an error.
    """

    def grids(blobs: Any) -> pa.ListArray:
        return _grids(blobs, shapes)

    connection.create_function(
        "patch_grid",
        grids,
        [duckdb.sqltype("BLOB")],
        duckdb.sqltype("FLOAT[][]"),
        type=PythonUDFType.ARROW,
    )


def _grids(blobs: Any, shapes: Sequence[tuple[int, int]]) -> pa.ListArray:
    column = blobs.combine_chunks() if isinstance(blobs, pa.ChunkedArray) else blobs
    sizes = {len(blob.as_buffer()) for blob in column.drop_null()}
    patch, width = _shape(sizes, shapes)
    whole = b"".join(blob.as_buffer() for blob in column.drop_null())
    values = pa.array(np.frombuffer(whole, "<f2").astype(np.float32))
    vectors = pa.ListArray.from_arrays(
        pa.array(np.arange(0, len(values) + 1, width, dtype=np.int32)), values
    )
    present = column.is_valid().to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(present) * patch]).astype(np.int32)
    missing = None if present.all() else pa.array(~present)
    return pa.ListArray.from_arrays(pa.array(ends), vectors, mask=missing)


def _shape(sizes: AbstractSet[int], shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the one shape that has the size of all BLOBs, in bytes; any where there is none."""
    fitting = [shape for shape in shapes if sizes <= {2 * shape[0] * shape[1]}]
    if not fitting:
        known = " or ".join(str(2 * patch * width) for patch, width in shapes)
        given = ", ".join(map(str, sorted(sizes)))
        raise ValueError(f"patch_grid takes {known} bytes, not {given}")
    if sizes and len(fitting) > 1:
        raise ValueError(f"BLOBs of {min(sizes)} bytes fit {fitting}: ask for one view only")
    return fitting[0]
