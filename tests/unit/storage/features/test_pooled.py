"""Indexes read by offset are the ones that pyarrow reads, however they were written."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage.features.pooled import read_indexes
from storage.features.shards import ShardError, shard_paths, write_shard
from tests.unit.storage.features.test_shards import WRITERS, made_rows, rewrite


def decoded(paths: list[Path]) -> pa.Table:
    return pa.concat_tables([pq.ParquetFile(path).read() for path in paths])


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 200), min_size=1, max_size=3),
    writer=st.sampled_from([*WRITERS, "ours", "ours", "variable lists"]),
    last=st.booleans(),
)
@example(counts=[3], writer="variable lists", last=True)
def test_the_table_is_the_one_that_pyarrow_reads(
    counts: list[int], writer: str, last: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, count in enumerate(counts):
            write_shard(Path(folder), number, made_rows(count, seed=number), "encoder")
            paths.append(shard_paths(Path(folder), number)[0])
        for path in paths[-1:] if last else paths:
            if writer == "variable lists":
                rewrite(path, store_schema=False)
            elif writer != "ours":
                options: dict[str, Any] = {**WRITERS[writer]}
                if options.get("column_encoding"):
                    options["column_encoding"] = {"pooled.list.element": "BYTE_STREAM_SPLIT"}
                rewrite(path, **options)
        try:
            expected = decoded(paths)
        except pa.ArrowInvalid:  # one of them has lists of variable length
            return
        found = read_indexes(paths)
        assert found.schema.equals(expected.schema)
        assert found.equals(expected)


def test_a_null_among_the_values_stays_one(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, made_rows(3), "encoder")
    path = shard_paths(tmp_path, 0)[0]
    table = pq.ParquetFile(path).read()
    place = table.schema.get_field_index("pooled")
    values = [[1.0, None, 3.0, 4.0], [5.0] * 4, [6.0] * 4]
    kind = table.schema.field(place)
    pq.write_table(
        table.set_column(place, kind, pa.array(values, kind.type)),
        path,
        compression="none",
        use_dictionary=False,
    )
    assert read_indexes([path])["pooled"].to_pylist() == values


def test_values_are_read_without_the_decoder(tmp_path: Path) -> None:
    rows = made_rows(150)
    write_shard(tmp_path, 0, rows, "encoder")
    path = shard_paths(tmp_path, 0)[0]
    place = path.read_bytes().index(rows.pooled[0].tobytes())
    other = np.float32(7.5)
    data = bytearray(path.read_bytes())
    data[place : place + 4] = other.tobytes()  # page checksums are not looked at here
    path.write_bytes(data)
    assert read_indexes([path])["pooled"][0].as_py()[0] == other


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, made_rows(3), "encoder")
    path = shard_paths(tmp_path, 0)[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ShardError, match="index-00000"):
        read_indexes([path])
