"""Parquet tables with fixed writer options, so that equal rows give equal bytes."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import StorageError

ROW_GROUP = 65_536
PIECE = 8192  # rows that become Arrow together
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
    count = 0
    with TableWriter(path, schema) as writer:
        for some in _pieces(rows):
            writer.write_rows(some)
            count += len(some)
    return count


def collect(name: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as one table, whose name in errors is `name`.

    Raises:
        StorageError: A row does not fit the schema.
    """
    tables = [as_table(name, some, schema) for some in _pieces(rows)]
    return pa.concat_tables([schema.empty_table(), *tables])


def as_table(name: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return some rows as a table, whose name in errors is `name`.

    Raises:
        StorageError: A row does not fit the schema.
    """
    try:
        return pa.Table.from_pylist(list(rows), schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError, OverflowError) as error:
        raise StorageError(f"rows for {name} do not fit their schema: {error}") from None


def _pieces(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the rows in lists of some thousand; the Arrow form is much smaller than the rows."""
    left = iter(rows)
    while some := list(islice(left, PIECE)):
        yield some


def list_column(lists: Sequence[Sequence[Any]], field: pa.Field) -> pa.ListArray:
    """Return lists of numbers or booleans as a column; Arrow takes them faster as one array."""
    kind = field.type.value_type
    ends = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    flat = np.fromiter(chain.from_iterable(lists), kind.to_pandas_dtype(), int(ends[-1]))
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(flat, kind), field.type)


def lists_of(column: pa.ChunkedArray) -> list[list[Any]]:
    """Return a column of lists of numbers or booleans as Python's, without nulls."""
    array = column.combine_chunks()
    flat = array.flatten().to_numpy(zero_copy_only=False).tolist()
    lengths = np.diff(array.offsets.to_numpy())
    ends = np.cumsum(lengths).tolist()
    return [flat[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def write_arrow(path: Path, table: pa.Table, packed: Sequence[str] = ()) -> None:
    """Write an Arrow table as one deterministic Parquet file; `packed` as in `TableWriter`."""
    with TableWriter(path, table.schema, packed=packed) as writer:
        writer.write(table)


def write_pieces(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write tables as one deterministic Parquet file and return how many rows there were."""
    count = 0
    with TableWriter(path, schema) as writer:
        for table in tables:
            writer.write(table)
            count += len(table)
    return count


class TableWriter:
    """Writes one deterministic Parquet file piece by piece, and holds one row group at most.

    The bytes depend on the rows alone, not on the pieces. The file is there once all is written,
    and not at all after an error.

    Args:
        path: The file.
        schema: Of the rows.
        metadata: What the file says about itself, for `read_metadata`.
        packed: Columns of values that do not compress, such as JPEGs. They are stored as they are:
            looking for equal ones, which needs their memory again and again, costs far more.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        metadata: Mapping[str, str] | None = None,
        packed: Sequence[str] = (),
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._schema = path, schema.remove_metadata()
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._rest, self._is_empty = self._schema.empty_table(), True
        self._writer = pq.ParquetWriter(
            self._temporary,
            self._schema,
            write_page_checksum=True,
            store_schema=False,
            **_encoding(self._schema, packed),
        )
        if metadata:
            self._writer.add_key_value_metadata(dict(metadata))

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        table = table.replace_schema_metadata(None)
        if len(self._rest):
            table = pa.concat_tables([self._rest, table])
        whole = len(table) - len(table) % ROW_GROUP
        for start in range(0, whole, ROW_GROUP):
            # As one piece each: pages end where pieces do.
            group = table.slice(start, ROW_GROUP).combine_chunks()
            self._writer.write_table(group, row_group_size=ROW_GROUP)
            self._is_empty = False
        self._rest = table.slice(whole).combine_chunks()

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows.

        Raises:
            StorageError: A row does not fit the schema.
        """
        self.write(as_table(self._path.name, rows, self._schema))

    def __enter__(self) -> "TableWriter":
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        """Write the rest and put the file in its place, or remove it after an error."""
        if kind is not None:
            self._writer.close()
            self._temporary.unlink(missing_ok=True)
            return
        if len(self._rest) or self._is_empty:  # a file without rows has one group without rows
            self._writer.write_table(self._rest, row_group_size=ROW_GROUP)
        self._writer.close()
        self._temporary.replace(self._path)


def _encoding(schema: pa.Schema, packed: Sequence[str]) -> dict[str, Any]:
    if not packed:
        return {"compression": "zstd"}
    others = [name for name in schema.names if name not in packed]
    compression = dict.fromkeys(others, "zstd") | dict.fromkeys(packed, "none")
    return {"compression": compression, "use_dictionary": others, "write_statistics": others}


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file as an Arrow table.

    Raises:
        StorageError: The file is not readable Parquet.
    """
    try:
        listed = None if columns is None else list(columns)
        return pq.read_table(path, columns=listed, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{path} cannot be read: {str(error).splitlines()[0]}",
        "run `phivision verify`, then `phivision run` to make it again",
    )


def read_group(path: Path, rows: int, columns: Sequence[str]) -> pa.Table:
    """Return columns of one of the row groups that `TableWriter` makes.

    Args:
        path: The file.
        rows: Number of the row group.
        columns: Their names.

    Raises:
        StorageError: The file is not readable Parquet, or has no such row group.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if rows >= file.num_row_groups:
                raise _unreadable(path, IndexError(f"it has no row group {rows}"))
            return file.read_row_group(rows, list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a file of `TableWriter` says about itself.

    Raises:
        StorageError: The file is not readable Parquet.
    """
    try:
        known = pq.read_metadata(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None
    return {key.decode(): value.decode() for key, value in known.items()}


def read_batches(path: Path, rows: int) -> Iterator[pa.Table]:
    """Yield a Parquet file in tables of at most `rows` rows, in order.

    Raises:
        StorageError: The file is not readable Parquet.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(rows, use_threads=False):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def where(table: pa.Table, **values: object) -> pa.Table:
    """Return the rows whose columns hold the given values."""
    for name, value in values.items():
        table = table.filter(pc.field(name) == value)
    return table
