"""Tables that are written piece by piece, and read so."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import tables
from storage.errors import StorageError
from storage.tables import (
    TableWriter,
    list_column,
    lists_of,
    read_batches,
    read_group,
    read_metadata,
    read_table,
    write_arrow,
    write_table,
)

SCHEMA = pa.schema([("number", pa.int64()), ("words", pa.list_(pa.string()))])


def rows(count: int) -> list[dict[str, object]]:
    return [{"number": at, "words": [str(at)] * (at % 3)} for at in range(count)]


@pytest.fixture(scope="module")
def small_groups() -> object:
    patch = pytest.MonkeyPatch()
    patch.setattr(tables, "ROW_GROUP", 8)
    patch.setattr(tables, "PIECE", 3)
    yield
    patch.undo()


@pytest.mark.usefixtures("small_groups")
@settings(max_examples=60)
@given(st.lists(st.integers(0, 20), max_size=5))
def test_the_bytes_depend_on_the_rows_and_not_on_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    table = pa.Table.from_pylist(rows(sum(sizes)), SCHEMA)
    with TableWriter(folder / "pieces.parquet", SCHEMA) as writer:
        start = 0
        for size in sizes:
            writer.write(table.slice(start, size))
            start += size
    write_arrow(folder / "whole.parquet", table)
    assert write_table(folder / "rows.parquet", iter(rows(len(table))), SCHEMA) == len(table)
    options = {"compression": "zstd", "write_page_checksum": True, "store_schema": False}
    pq.write_table(table, folder / "plain.parquet", row_group_size=8, **options)
    contents = {path.read_bytes() for path in folder.iterdir()}
    assert len(contents) == 1
    assert read_table(folder / "pieces.parquet").to_pylist() == rows(len(table))


@pytest.mark.usefixtures("small_groups")
def test_batches_are_the_table_in_order(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", rows(20), SCHEMA)
    found = list(read_batches(tmp_path / "a.parquet", 6))
    assert max(map(len, found)) == 6
    assert pa.concat_tables(found).to_pylist() == rows(20)


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(StorageError, match=r"rows for a\.parquet do not fit"):
        write_table(path, [*rows(2), {"number": "x"}], SCHEMA)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(StorageError, match="phivision verify"):
        list(read_batches(path, 2))
    with pytest.raises(StorageError, match="phivision verify"):
        read_table(path)


def test_a_file_says_what_it_is_told_and_nothing_else(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows(3), SCHEMA)
    for name, metadata in (("plain", None), ("empty", {}), ("told", {"phivision.x": "ä"})):
        with TableWriter(tmp_path / name, SCHEMA, metadata) as writer:
            writer.write(table)
    assert read_metadata(tmp_path / "told") == {"phivision.x": "ä"}
    assert read_metadata(tmp_path / "plain") == {}
    assert (tmp_path / "empty").read_bytes() == (tmp_path / "plain").read_bytes()
    assert read_table(tmp_path / "told").to_pylist() == rows(3)


@pytest.mark.usefixtures("small_groups")
def test_a_row_group_is_read_alone(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", rows(20), SCHEMA)
    assert read_group(tmp_path / "a.parquet", 2, ["number"])["number"].to_pylist() == [
        *range(16, 20)
    ]
    with pytest.raises(StorageError, match="it has no row group 3"):
        read_group(tmp_path / "a.parquet", 3, ["number"])


@pytest.mark.parametrize("read", [read_metadata, lambda path: read_group(path, 0, [])])
def test_what_is_no_table_is_told(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(StorageError, match=r"a\.parquet cannot be read"):
        read(tmp_path / "a.parquet")


@given(st.lists(st.lists(st.integers(-5, 2**31 - 1), max_size=4), max_size=6), st.integers(0, 6))
def test_lists_are_a_column_and_lists_again(lists: list[list[int]], start: int) -> None:
    field = pa.field("ids", pa.list_(pa.int32()))
    column = list_column(lists, field)
    assert column.equals(pa.array(lists, field.type))
    assert lists_of(pa.chunked_array([column.slice(start)])) == lists[start:]
    flags = [[number > 0 for number in some] for some in lists]
    column = list_column(flags, pa.field("flags", pa.list_(pa.bool_())))
    assert lists_of(pa.chunked_array([column, column])) == flags * 2


def test_packed_columns_are_stored_as_they_are_and_come_back(tmp_path: Path) -> None:
    data = [bytes(range(200))] * 5
    table = pa.table({"name": ["one"] * 5, "data": pa.array(data, pa.binary())})
    path = tmp_path / "packed.parquet"
    write_arrow(path, table, packed=("data",))
    assert read_table(path).equals(table)
    stored = pq.read_metadata(path).row_group(0)
    name, packed = (stored.column(at) for at in range(2))
    assert (name.compression, packed.compression) == ("ZSTD", "UNCOMPRESSED")
    assert packed.total_compressed_size > sum(map(len, data))
    assert not packed.is_stats_set
