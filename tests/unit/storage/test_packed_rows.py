"""Rows that are held compressed come back as they were, in their order."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import StorageError
from storage.packed_rows import PackedRows
from storage.tables import PIECE

SCHEMA = pa.schema([("number", pa.int64()), ("word", pa.string())])
rows = st.lists(st.fixed_dictionaries({"number": st.none() | st.integers(0, 9)}), max_size=4)


@given(st.lists(rows, max_size=4), st.booleans())
def test_rows_and_tables_keep_their_order(parts: list[list[dict]], first_as_rows: bool) -> None:
    packed = PackedRows("words", SCHEMA)
    for at, part in enumerate(parts):
        if at % 2 == first_as_rows:
            packed.add_table(pa.Table.from_pylist(part, SCHEMA))
        else:
            for row in part:
                packed.add(row)
    expected = [{"word": None, **row} for part in parts for row in part]
    assert [row for table in packed for row in table.to_pylist()] == expected
    assert len(packed) == len(expected)


def test_many_rows_take_less_than_arrow_needs() -> None:
    many = ({"number": at, "word": f"a man rides a horse {at % 7}"} for at in range(3 * PIECE))
    packed = PackedRows("words", SCHEMA, many)
    table = pa.concat_tables(packed)
    assert table["number"].to_pylist() == list(range(3 * PIECE))
    assert sum(map(len, packed._packed)) < table.nbytes / 3


def test_a_row_that_does_not_fit_names_the_table() -> None:
    with pytest.raises(StorageError, match="rows for words do not fit their schema"):
        PackedRows("words", SCHEMA, [{"number": "seven"}])
