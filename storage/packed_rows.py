"""Rows held in memory under compression, for tables that are as long as a dataset."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from storage.tables import PIECE, as_table

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


class PackedRows:
    """Rows in their order, compressed some thousand at a time.

    Captions take a fifth of their size as Arrow, and a twentieth of that as dictionaries.

    Args:
        name: What the table is called in errors.
        schema: Its schema.
        rows: The first rows.

    Raises:
        StorageError: One of them does not fit the schema.
    """

    def __init__(
        self, name: str, schema: pa.Schema, rows: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self._name, self._schema = name, schema
        self._packed: list[bytes] = []
        self._rows: list[Mapping[str, Any]] = []
        self._count = 0
        for row in rows:
            self.add(row)
        self._pack_rest()

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; columns that it lacks are null.

        Raises:
            StorageError: It, or one of the rows before it, does not fit the schema.
        """
        self._rows.append(row)
        if len(self._rows) >= PIECE:
            self._pack_rest()

    def add_table(self, table: pa.Table) -> None:
        """Add the rows of a table.

        Raises:
            StorageError: One of the rows before it does not fit the schema.
        """
        self._pack_rest()
        self._pack(table)

    def _pack_rest(self) -> None:
        if self._rows:
            rows, self._rows = self._rows, []
            self._pack(as_table(self._name, rows, self._schema))

    def _pack(self, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._schema, options=_OPTIONS) as writer:
            writer.write_table(table)
        self._packed.append(sink.getvalue().to_pybytes())
        self._count += len(table)

    def __len__(self) -> int:
        """Return how many rows there are."""
        return self._count + len(self._rows)

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the rows as tables of some thousand.

        Raises:
            StorageError: One of the last rows does not fit the schema.
        """
        for packed in self._packed:
            with pa.ipc.open_stream(packed) as reader:
                yield reader.read_all()
        if self._rows:
            yield as_table(self._name, self._rows, self._schema)
