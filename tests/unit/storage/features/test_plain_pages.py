"""Pages of other writers and damaged headers: read by offset just where every byte is known."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.features.patches import PatchTable
from storage.features.plain_pages import OtherLayoutError, plain_pages
from storage.features.pooled import read_indexes
from storage.features.shards import ShardError, shard_paths
from tests.unit.storage.features.test_shards import assert_rows, made_rows, rewrite, written

# With statistics a footer holds types that our own files do not, and nothing further is looked at.
BARE = {"compression": "none", "use_dictionary": False, "write_statistics": False}
LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "compressed": ({"compression": "snappy"}, "compression or a dictionary"),
    "dictionary": ({"use_dictionary": True}, "compression or a dictionary"),
    "many pages": ({"max_rows_per_page": 3}, "not one PLAIN page"),
    "data page v2": ({"data_page_version": "2.0"}, "Thrift type"),
    "statistics": ({"write_statistics": True}, "Thrift type"),
}
ROWS = made_rows(5)  # 150 bytes of patches


def replaced(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes that stand in a file exactly once, by as many."""
    data = path.read_bytes()
    assert (data.count(old), len(old)) == (1, len(new))
    path.write_bytes(data.replace(old, new))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Index and patches of `ROWS`."""
    [pair] = written(tmp_path, ROWS)
    return pair


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_layout_is_decoded_with_its_reason(
    files: tuple[Path, Path], layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    options, reason = LAYOUTS[layout]
    rewrite(files[1], **{**BARE, **options})
    with caplog.at_level(logging.WARNING):
        table = PatchTable([files])
    assert not table.direct
    assert reason in caplog.text
    assert_rows(table, ROWS.patches)


def test_rows_of_variable_size_are_decoded(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    field = pa.field("patches", pa.binary(), nullable=False)
    column = pa.array([row.tobytes() for row in ROWS.patches], pa.binary())
    pq.write_table(pa.table([column], pa.schema([field])), files[1], **BARE)
    with caplog.at_level(logging.WARNING):
        table = PatchTable([files])
    assert "rows of another size than 30" in caplog.text
    assert_rows(table, ROWS.patches)


@pytest.mark.parametrize("keep", [0, 4, 8])
def test_what_is_cut_short_has_no_pages(files: tuple[Path, Path], keep: int) -> None:
    view = memoryview(files[1].read_bytes()[:keep])
    with pytest.raises(OtherLayoutError, match="damaged"):
        list(plain_pages(view, column=0))


def test_a_page_that_is_shorter_than_its_chunk_is_refused(files: tuple[Path, Path]) -> None:
    # Both sizes in the page's header, as Thrift writes 150; 149 leaves a byte that nobody knows.
    replaced(files[1], b"\x15\xac\x02\x15\xac\x02", b"\x15\xaa\x02\x15\xaa\x02")
    with pytest.raises(OtherLayoutError, match="sizes that disagree"):
        list(plain_pages(memoryview(files[1].read_bytes()), column=0))


def test_an_unknown_type_in_a_footer_is_refused(files: tuple[Path, Path]) -> None:
    data = bytearray(files[1].read_bytes())
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[start] = 3  # the type of the first field, of which there is no distance from the last
    with pytest.raises(OtherLayoutError, match="Thrift type"):
        list(plain_pages(memoryview(bytes(data)), column=0))


def test_lists_with_a_null_are_decoded(files: tuple[Path, Path]) -> None:
    table = pq.ParquetFile(files[0]).read()
    place = table.schema.get_field_index("pooled")
    field = pa.field("pooled", table.schema.field(place).type)
    values = [[1.0, None, 3.0, 4.0], *([5.0] * 4 for _ in range(4))]
    column = pa.array(values, field.type)
    pq.write_table(table.set_column(place, field, column), files[0], **BARE)
    assert read_indexes([files[0]])["pooled"].to_pylist() == values


def test_lists_of_another_length_than_the_schema_says_are_refused(tmp_path: Path) -> None:
    shorter = dataclasses.replace(ROWS, pooled=ROWS.pooled[:, :3].copy())
    [(four, _), (three, _)] = written(tmp_path, ROWS, shorter)
    # Arrow's own schema, kept in the footer, is the only place that tells the length.
    schemas = [pq.read_metadata(path).metadata[b"ARROW:schema"] for path in (three, four)]
    replaced(three, *schemas)
    with pytest.raises(ShardError, match=r"index-00001\.parquet.*\n.*write the shard again"):
        read_indexes([three])


def test_values_that_are_no_whole_rows_are_not_read_by_offset(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    # Page and chunk both say 4 values (Thrift doubles them), where 150 bytes are 5 rows.
    replaced(files[1], b"\x1c\x15\x0a\x15\x00", b"\x1c\x15\x08\x15\x00")
    replaced(files[1], b"\x15\x00\x16\x0a", b"\x15\x00\x16\x08")
    with caplog.at_level(logging.WARNING):
        table = PatchTable([files])
    assert not table.direct
    with pytest.raises(ShardError, match=r"patches-00000\.parquet"):
        table.gather(np.arange(5))


def test_row_groups_that_lack_a_row_are_refused(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    fewer = dataclasses.replace(
        ROWS, **{each.name: getattr(ROWS, each.name)[:4] for each in dataclasses.fields(ROWS)}
    )
    written(files[0].parent / "fewer", fewer)
    damaged = shard_paths(files[0].parent / "fewer", 0)[1]
    replaced(damaged, b"patches\x00\x16\x08", b"patches\x00\x16\x0a")  # rows of the whole file
    with caplog.at_level(logging.WARNING):
        table = PatchTable([(files[0], damaged)])
    assert "row groups that do not add up" in caplog.text
    with pytest.raises(ShardError, match=r"patches-00000\.parquet"):
        table.gather(np.arange(5))
