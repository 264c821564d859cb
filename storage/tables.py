"""Parquet tables with fixed writer options, so that equal rows give equal bytes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import StorageError

ROW_GROUP = 65_536
_EXACT = 2**53  # above it, floats skip whole numbers
_DIGITS = re.compile(r"-?[0-9]{1,19}")


def is_text(value: object) -> TypeGuard[str]:
    """Return whether a value is text that UTF-8 can hold; JSON can also hold lone surrogates."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_int64(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number that a column can hold; booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def as_int64(value: object) -> int | None:
    """Return the whole number that a value is or plainly means (17, 17.0, "17"), else None."""
    if isinstance(value, str):
        value = int(value) if _DIGITS.fullmatch(value) else None
    elif isinstance(value, float):
        value = int(value) if value.is_integer() and abs(value) < _EXACT else None
    return value if is_int64(value) else None


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number that a column of floats can hold."""
    return isinstance(value, float) or is_int64(value)


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> int:
    """Write rows as one Parquet file and return how many there were.

    Raises:
        StorageError: A row does not fit the schema.
    """
    listed = list(rows)
    try:
        table = pa.Table.from_pylist(listed, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError, OverflowError) as error:
        raise StorageError(f"rows for {path.name} do not fit their schema: {error}") from None
    write_arrow(path, table)
    return len(listed)


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write an Arrow table as one deterministic Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(
        table.replace_schema_metadata(None),
        temporary,
        compression="zstd",
        row_group_size=ROW_GROUP,
        write_page_checksum=True,
        store_schema=False,
    )
    temporary.replace(path)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file as an Arrow table.

    Raises:
        StorageError: The file is not readable Parquet.
    """
    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(
            f"{path} cannot be read: {str(error).splitlines()[0]}",
            "run `phivision verify`, then `phivision run` to make it again",
        ) from None


def where(table: pa.Table, **values: object) -> pa.Table:
    """Return the rows whose columns hold the given values."""
    for name, value in values.items():
        table = table.filter(pc.field(name) == value)
    return table
