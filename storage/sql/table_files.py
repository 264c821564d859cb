"""Rows of CSV, TSV, JSON lines and Parquet files, read by DuckDB batch by batch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import duckdb

from storage.errors import StorageError

_BATCH = 4096  # rows held at once
# Everything is text in CSV; a caption is never taken for a number or a date.
_READERS: Mapping[str, str] = MappingProxyType(
    {
        ".csv": "read_csv($paths, header = true, all_varchar = true)",
        ".tsv": "read_csv($paths, header = true, all_varchar = true, delim = '\t', quote = '\"')",
        ".jsonl": "read_json($paths, format = 'newline_delimited')",
        ".ndjson": "read_json($paths, format = 'newline_delimited')",
        ".json": "read_json($paths)",
        ".parquet": "read_parquet($paths)",
    }
)
SUFFIXES = frozenset(_READERS) | {f"{suffix}.gz" for suffix in _READERS if suffix != ".parquet"}


def table_suffix(name: str) -> str:
    """Return which of `SUFFIXES` a name ends with, "" if none."""
    lower = name.lower()
    return max((suffix for suffix in SUFFIXES if lower.endswith(suffix)), key=len, default="")


def table_columns(paths: Sequence[Path]) -> dict[str, str]:
    """Return the columns of files of one kind, with DuckDB's name of their types.

    Raises:
        StorageError: They cannot be read in the format of their suffix.
    """
    with _connection() as connection:
        result = _run(connection, paths, "SELECT * FROM {} LIMIT 0")
        return dict(zip(result.columns, map(str, result.types), strict=True))


def table_rows(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of files of one kind in their order, with the named columns only.

    Raises:
        StorageError: A column is missing (those that exist are named), or a file is damaged.
    """
    known = table_columns(paths)
    for column in columns:
        if column not in known:
            raise StorageError(
                f"{paths[0].name} has no column {column!r}",
                f"name one of its columns: {', '.join(known)}",
            )
    chosen = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
    with _connection() as connection:
        result = _run(connection, paths, f"SELECT {chosen} FROM {{}}")  # noqa: S608
        try:
            for batch in result.to_arrow_reader(_BATCH):
                yield from batch.to_pylist()
        except duckdb.Error as error:
            raise _unreadable(paths, error) from None


def _connection() -> duckdb.DuckDBPyConnection:
    # Rows come in the order of the file, whatever the number of threads.
    return duckdb.connect(":memory:", config={"preserve_insertion_order": True})


def _run(
    connection: duckdb.DuckDBPyConnection, paths: Sequence[Path], sql: str
) -> duckdb.DuckDBPyRelation:
    suffix = table_suffix(paths[0].name).removesuffix(".gz")
    if not suffix:
        raise StorageError(
            f"{paths[0].name} is not a table", f"give a file that ends in {', '.join(_READERS)}"
        )
    reader = _READERS[suffix]
    try:
        return connection.sql(sql.format(reader), params={"paths": [str(path) for path in paths]})
    except duckdb.Error as error:
        raise _unreadable(paths, error) from None


def _unreadable(paths: Sequence[Path], error: duckdb.Error) -> StorageError:
    reason = " ".join(str(error).split())[:400]
    return StorageError(f"{paths[0].name} cannot be read: {reason}", "repair the file")
