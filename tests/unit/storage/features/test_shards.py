"""Feature shards: one format, several readers, the same rows from each; damage is found."""

import dataclasses
import hashlib
import logging
import os
import pickle
import resource
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.failures import explain
from storage.features.patches import PatchTable
from storage.features.shards import (
    ShardError,
    ShardRows,
    index_schema,
    patch_norms,
    publish_shard,
    shard_paths,
    verify_shard,
    write_shard,
)

ENCODER = "encoder-1"
FEW = settings(max_examples=15, deadline=None)


def made_rows(count: int, patch: int = 3, width: int = 5, seed: int = 0) -> ShardRows:
    rng = np.random.default_rng(seed)
    return ShardRows(
        sha256=[hashlib.sha256(f"{seed}/{row}".encode()).hexdigest() for row in range(count)],
        image_id=rng.integers(0, 2**40, count),
        width=rng.integers(1, 640, count).astype(np.int32),
        height=rng.integers(1, 640, count).astype(np.int32),
        split=[("train", "val")[row % 2] for row in range(count)],
        pooled=rng.standard_normal((count, 4), np.float32),
        patches=rng.standard_normal((count, patch, width), np.float32).astype(np.float16),
    )


def written(folder: Path, *shards: ShardRows) -> list[tuple[Path, Path]]:
    for number, rows in enumerate(shards):
        write_shard(folder, number, rows, ENCODER)
    return [shard_paths(folder, number) for number in range(len(shards))]


def joined(shards: list[ShardRows], patch: int = 3, width: int = 5) -> np.ndarray:
    return np.concatenate([np.empty((0, patch, width), np.float16), *(s.patches for s in shards)])


def rewrite(path: Path, **options: Any) -> None:
    """Write a Parquet file again, with the same rows and another layout."""
    table = pq.ParquetFile(path).read()
    pq.write_table(table, path, **options)


def rewrite_with_duckdb(path: Path) -> None:
    """Write a patches file again as a writer does that knows neither fixed sizes nor our keys."""
    other = path.with_suffix(".other")
    with duckdb.connect() as connection:
        connection.from_parquet(str(path)).write_parquet(str(other))
    other.replace(path)


def assert_rows(table: PatchTable, expected: np.ndarray) -> None:
    """Every way of reading gives `expected`, bit by bit."""
    order = np.random.default_rng(1).permutation(len(expected))
    gathered = table.gather(order)
    assert len(table) == len(expected)
    assert gathered.dtype == np.float16
    assert gathered.shape == expected.shape
    assert gathered.tobytes() == expected[order].tobytes()
    assert b"".join(row.tobytes() for row in table) == expected.tobytes()


def test_patches_file_has_the_layout_that_offsets_need(tmp_path: Path) -> None:
    [(_, path)] = written(tmp_path, made_rows(300))
    file = pq.ParquetFile(path)
    assert list(file.schema_arrow) == [pa.field("patches", pa.binary(30), nullable=False)]
    assert file.schema_arrow.metadata == {
        b"phivision.shape": b"3,5",
        b"phivision.dtype": b"float16",
        b"phivision.encoder": ENCODER.encode(),
    }
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [128, 128, 44]
    for chunk in (group.column(0) for group in groups):
        assert (chunk.compression, chunk.statistics) == ("UNCOMPRESSED", None)
        assert not chunk.has_dictionary_page
        # What is not rows is the header of a single page.
        assert 0 < chunk.total_compressed_size - chunk.num_values * 30 < 40


def test_index_file_has_its_columns(tmp_path: Path) -> None:
    rows = made_rows(7)
    [(path, _)] = written(tmp_path, made_rows(2, seed=9), rows)[1:]
    index = pq.ParquetFile(path).read()
    assert index.schema.equals(index_schema(4))
    assert index["pooled"].to_pylist() == rows.pooled.tolist()
    assert index["image_id"].to_pylist() == rows.image_id.tolist()
    assert index["shard"].to_pylist() == [1] * 7
    assert index["row"].to_pylist() == list(range(7))
    norms = np.linalg.norm(rows.patches.astype(np.float64), axis=2).mean(axis=1)
    np.testing.assert_allclose(index["patch_norm"].to_numpy(), norms, rtol=1e-6)


def test_rows_of_the_real_shape_are_read_by_offset_and_cost_no_space(tmp_path: Path) -> None:
    rows = made_rows(130, patch=49, width=768)
    table = PatchTable(written(tmp_path, rows))
    assert (table.direct, table.shape, table.encoder) == (True, (49, 768), ENCODER)
    assert_rows(table, rows.patches)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size <= 1.01 * (rows.patches.nbytes + rows.pooled.nbytes)


@FEW
@given(
    counts=st.lists(st.integers(0, 300), max_size=4),
    patch=st.integers(1, 4),
    width=st.integers(1, 6),
    data=st.data(),
)
def test_shards_of_any_sizes_come_back(
    counts: list[int], patch: int, width: int, data: st.DataObject
) -> None:
    shards = [made_rows(count, patch, width, seed) for seed, count in enumerate(counts)]
    keys = [key for rows in shards for key in rows.sha256]
    some = st.lists(st.integers(0, len(keys) - 1), max_size=9) if keys else st.just([])
    wanted = data.draw(some)
    expected = joined(shards, patch, width)
    with tempfile.TemporaryDirectory() as folder:
        table = PatchTable(written(Path(folder), *shards))
        for number in range(len(shards)):
            verify_shard(Path(folder), number)
        assert table.direct
        if shards:
            assert_rows(table, expected)
        assert table.index["sha256"].to_pylist() == keys
        assert table.rows_of([keys[row] for row in wanted]).tolist() == wanted
        got = table.gather(np.array(wanted, np.int64))
        assert got.tobytes() == expected[wanted].tobytes()


WRITERS = {
    "compressed": {"compression": "zstd"},
    "dictionary": {"compression": "none", "use_dictionary": True},
    "split streams": {
        "compression": "none",
        "use_dictionary": False,
        "column_encoding": "BYTE_STREAM_SPLIT",
    },
    "many pages": {"compression": "none", "use_dictionary": False, "max_rows_per_page": 3},
    "data page v2": {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
    "snappy, one row per group": {"compression": "snappy", "row_group_size": 1},
}


@FEW
@given(
    counts=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    writer=st.sampled_from([*WRITERS, "duckdb"]),
    data=st.data(),
)
def test_another_writers_files_give_the_same_rows(
    counts: list[int], writer: str, data: st.DataObject
) -> None:
    shards = [made_rows(count, seed=seed) for seed, count in enumerate(counts)]
    chosen = data.draw(st.sets(st.integers(0, len(shards) - 1), min_size=1))
    with tempfile.TemporaryDirectory() as folder:
        files = written(Path(folder), *shards)
        for number in chosen:
            path = files[number][1]
            rewrite_with_duckdb(path) if writer == "duckdb" else rewrite(path, **WRITERS[writer])
        table = PatchTable(files)
        assert_rows(table, joined(shards))


def test_all_rows_are_a_table_with_their_keys(tmp_path: Path) -> None:
    shards = [made_rows(300), made_rows(0, seed=1), made_rows(5, seed=2)]
    files = written(tmp_path, *shards)
    rewrite(files[2][1], **WRITERS["compressed"])  # decoded, the others stay where they are
    table = PatchTable(files).rows()
    assert table["patches"].to_pylist() == [row.tobytes() for row in joined(shards)]
    assert table["sha256"].to_pylist() == [key for rows in shards for key in rows.sha256]
    assert table["shard"].to_pylist() == [0] * 300 + [2] * 5
    assert table["row"].to_pylist() == [*range(300), *range(5)]
    assert table.schema.metadata == {b"phivision.shape": b"3,5"}


@pytest.mark.parametrize("writer", [*WRITERS, "duckdb"])
def test_another_writers_file_is_decoded_and_says_so(
    writer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [files] = written(tmp_path, made_rows(20))
    rewrite_with_duckdb(files[1]) if writer == "duckdb" else rewrite(files[1], **WRITERS[writer])
    with caplog.at_level(logging.WARNING):
        table = PatchTable([files])
    assert not table.direct
    assert str(files[1]) in caplog.text


def test_nullable_column_is_decoded_and_a_null_is_an_error(tmp_path: Path) -> None:
    rows = made_rows(9)
    [files] = written(tmp_path, rows)
    column = pq.ParquetFile(files[1]).read()["patches"].to_pylist()
    schema = pa.schema([pa.field("patches", pa.binary(30))])
    layout = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table([pa.array(column, pa.binary(30))], schema), files[1], **layout)
    table = PatchTable([files])
    assert not table.direct
    assert_rows(table, rows.patches)
    column[4] = None
    pq.write_table(pa.table([pa.array(column, pa.binary(30))], schema), files[1], **layout)
    with pytest.raises(ShardError, match=r"patches-00000\.parquet: null"):
        PatchTable([files]).gather(np.array([4]))


def test_rows_of_another_size_are_an_error(tmp_path: Path) -> None:
    [files] = written(tmp_path, made_rows(9))
    column = pq.ParquetFile(files[1]).read()["patches"].to_pylist()
    column[4] = column[4][:-2]
    pq.write_table(pa.table({"patches": pa.array(column, pa.binary())}), files[1])
    with pytest.raises(ShardError, match=r"patches-00000\.parquet"):
        PatchTable([files]).gather(np.array([0]))


def test_one_row_is_a_read_only_view_and_a_batch_is_a_copy(tmp_path: Path) -> None:
    table = PatchTable(written(tmp_path, made_rows(200)))
    assert not table[150].flags.owndata
    assert not table[150].flags.writeable
    batch = table.gather(np.array([150, 0]))
    assert batch.flags.writeable
    assert batch.flags.aligned


def test_row_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    table = PatchTable(written(tmp_path, made_rows(5)))
    for row in (-1, 5):
        with pytest.raises(IndexError, match="of 5"):
            table[row]
        with pytest.raises(IndexError, match="of 5"):
            table.gather(np.array([0, row]))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("direct", [True, False])
def test_a_table_holds_no_file_open(tmp_path: Path, *, direct: bool) -> None:
    shards = [made_rows(4, seed=seed) for seed in range(5)]
    files = written(tmp_path, *shards)
    if not direct:
        for _, path in files:
            rewrite(path, **WRITERS["compressed"])
    before = open_files()
    table = PatchTable(files)
    assert table.direct is direct
    assert open_files() == before
    assert_rows(table, joined(shards))


def test_too_many_open_files_are_no_damage(tmp_path: Path) -> None:
    files = written(tmp_path, made_rows(4))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, held + 1), hard))
        with pytest.raises(OSError, match="Too many open files") as caught:
            PatchTable(files)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(held)
    told = explain(caught.value)
    assert told is not None
    assert "raise ulimit -n" in told
    assert "delete" not in told


def test_no_shards_make_an_empty_table() -> None:
    table = PatchTable([])
    assert (len(table), table.shape, table.index.num_rows) == (0, (0, 0), 0)
    assert table.gather(np.empty(0, np.int64)).shape == (0, 0, 0)
    assert table.rows_of([]).tolist() == []


def test_a_shard_without_rows_keeps_its_shape(tmp_path: Path) -> None:
    table = PatchTable(written(tmp_path, made_rows(0)))
    verify_shard(tmp_path, 0)
    assert (len(table), table.shape) == (0, (3, 5))


def test_an_unknown_image_is_named(tmp_path: Path) -> None:
    rows = made_rows(3)
    table = PatchTable(written(tmp_path, rows))
    with pytest.raises(ShardError, match=f"1 of 2 images have no patches, first sha256 {'0' * 64}"):
        table.rows_of([rows.sha256[0], "0" * 64])


def test_content_in_two_shards_is_read_from_the_first(tmp_path: Path) -> None:
    rows = made_rows(3)
    table = PatchTable(written(tmp_path, rows, rows))
    assert table.rows_of(rows.sha256).tolist() == [0, 1, 2]


def test_a_table_travels_by_path_not_by_bytes(tmp_path: Path) -> None:
    rows = made_rows(200, patch=49, width=64)
    pickled = pickle.dumps(PatchTable(written(tmp_path, rows)))
    assert len(pickled) < 1000
    assert_rows(pickle.loads(pickled), rows.patches)


def test_shards_of_two_encoders_or_shapes_do_not_mix(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, made_rows(3), "encoder-1")
    write_shard(tmp_path, 1, made_rows(3, seed=1), "encoder-2")
    write_shard(tmp_path, 2, made_rows(3, patch=2), "encoder-1")
    for other in (1, 2):
        with pytest.raises(ShardError, match="one encoder only"):
            PatchTable([shard_paths(tmp_path, 0), shard_paths(tmp_path, other)])


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    rows = made_rows(300)
    spread = dataclasses.replace(
        rows,
        patches=np.asfortranarray(rows.patches),
        pooled=np.asfortranarray(rows.pooled),
        width=rows.width.astype(np.int64),
    )
    written(tmp_path / "a", rows)
    written(tmp_path / "b", spread)
    for a, b in zip(shard_paths(tmp_path / "a", 0), shard_paths(tmp_path / "b", 0), strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_duckdb_reads_both_files(tmp_path: Path) -> None:
    rows = made_rows(150)
    [(index, patches)] = written(tmp_path, rows)
    with duckdb.connect() as connection:
        sizes = "SELECT octet_length(patches), count(*) FROM read_parquet(?) GROUP BY ALL"
        assert connection.execute(sizes, [str(patches)]).fetchall() == [(30, 150)]
        blobs = connection.execute("SELECT patches FROM read_parquet(?)", [str(patches)]).fetchall()
        some = "SELECT sha256, image_id, split, pooled[1] FROM read_parquet(?) WHERE row = 149"
        [found] = connection.execute(some, [str(index)]).fetchall()
    assert blobs[149][0] == rows.patches[149].tobytes()
    expected = (rows.sha256[149], rows.image_id[149], rows.split[149], rows.pooled[149, 0])
    assert found == expected


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("patches", np.zeros((3, 15), np.float16), "patches must be float16 with 3 axes"),
        ("patches", np.zeros((3, 3, 5), np.float32), "patches must be float16"),
        ("patches", np.zeros((3, 0, 5), np.float16), "patches must be float16"),
        ("patches", np.zeros((2, 3, 5), np.float16), "patches has 2 rows, not 3"),
        ("pooled", np.zeros(3, np.float32), "pooled must be float32 with 2 axes"),
        ("pooled", np.zeros((4, 4), np.float32), "pooled has 4 rows, not 3"),
        ("split", ["train"] * 2, "split has 2 rows, not 3"),
        ("split", ["train", None, "val"], "split has nulls"),
        ("width", np.array([1, 2, 2**40]), "do not fit the index"),
        ("sha256", ["a" * 64, "b" * 64, "C" * 64], "lower-case hex digits, not 'CCC"),
        ("sha256", ["a" * 64, "b" * 64, "a" * 64], "occurs 2 times"),
        # Memory that nobody touches: the check comes before the first value is looked at.
        ("patches", np.empty((3, 1, 2**23), np.float16), "128 rows of patches exceed 2 GiB"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    column: str, value: Any, message: str, tmp_path: Path
) -> None:
    rows = dataclasses.replace(made_rows(3), **{column: value})
    with pytest.raises(ShardError, match=message):
        write_shard(tmp_path, 0, rows, ENCODER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["patches", "pooled"])
def test_a_value_that_is_not_finite_is_refused_by_name(
    column: str, value: float, tmp_path: Path
) -> None:
    rows = made_rows(5)
    getattr(rows, column)[3, 1] = value
    with pytest.raises(ShardError, match=f"NaN or infinity in 1 images, .* {rows.sha256[3]}"):
        write_shard(tmp_path, 0, rows, ENCODER)
    assert list(tmp_path.iterdir()) == []


@FEW
@given(st.binary(min_size=60, max_size=60))
def test_a_norm_is_finite_just_when_every_value_is(bits: bytes) -> None:
    patches = np.frombuffer(bits, np.float16).reshape(2, 3, 5)
    finite = np.isfinite(patches).all(axis=(1, 2))
    assert np.isfinite(patch_norms(patches)).tolist() == finite.tolist()


def test_a_failed_write_leaves_the_finished_shard_alone(tmp_path: Path) -> None:
    files = written(tmp_path, made_rows(5))[0]
    before = [path.read_bytes() for path in files]
    rows = made_rows(5)
    rows.pooled[0, 0] = np.nan
    with pytest.raises(ShardError):
        write_shard(tmp_path, 0, rows, ENCODER)
    assert [path.read_bytes() for path in files] == before
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_a_shard_can_be_replaced(tmp_path: Path) -> None:
    written(tmp_path, made_rows(5))
    files = written(tmp_path, made_rows(9, seed=1))
    verify_shard(tmp_path, 0)
    assert_rows(PatchTable(files), made_rows(9, seed=1).patches)
    assert sorted(tmp_path.iterdir()) == sorted(files[0])


@pytest.fixture(scope="module")
def small_shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    [files] = written(tmp_path_factory.mktemp("small"), made_rows(5))
    return files


@settings(max_examples=100, deadline=None)
@given(which=st.integers(0, 1), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_changes_no_row(
    which: int, place: float, bit: int, small_shard: tuple[Path, Path]
) -> None:
    contents = [path.read_bytes() for path in small_shard]
    damaged = bytearray(contents[which])
    damaged[int(place * len(damaged))] ^= 1 << bit
    contents[which] = bytes(damaged)
    with tempfile.TemporaryDirectory() as folder:
        files = shard_paths(Path(folder), 0)
        for path, content in zip(files, contents, strict=True):
            path.write_bytes(content)
        try:
            verify_shard(Path(folder), 0)
        except ShardError:
            return
        table = PatchTable([files])
        assert_rows(table, made_rows(5).patches)
        assert table.index.equals(PatchTable([small_shard]).index)


@pytest.mark.parametrize("which", [0, 1])
def test_a_flipped_bit_in_a_row_is_found_and_named(which: int, tmp_path: Path) -> None:
    path = written(tmp_path, made_rows(300))[0][which]
    damaged = bytearray(path.read_bytes())
    damaged[3000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ShardError, match=f"{path.name}.*\n.*write the shard again"):
        verify_shard(tmp_path, 0)


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
@pytest.mark.parametrize("which", [0, 1])
def test_a_truncated_file_is_found_and_named(which: int, keep: int, tmp_path: Path) -> None:
    files = written(tmp_path, made_rows(20))
    path = files[0][which]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ShardError, match=f"{path.name}.*\n.*write the shard again"):
        verify_shard(tmp_path, 0)
    with pytest.raises(ShardError, match=path.name):
        PatchTable(files)


def test_a_shard_that_does_not_read_back_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(handle: int) -> None:
        """What a bad disk does: it says that it has the bytes, and has others."""
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if "patches" in path.name:
            path.write_bytes(path.read_bytes().replace(b"\0", b"\1", 1))

    publish_shard(tmp_path, 0, made_rows(5), ENCODER)
    verify_shard(tmp_path, 0)
    monkeypatch.setattr(os, "fsync", spoil)
    with pytest.raises(ShardError, match=r"patches-00000\.parquet.*\n.*write the shard again"):
        publish_shard(tmp_path, 0, made_rows(5), ENCODER)
    assert not shard_paths(tmp_path, 0)[0].exists()  # without its index there is no shard


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({b"phivision.dtype": b"float32"}, "dtype 'float32'"),
        ({b"phivision.shape": b"3,0"}, "shape '3,0'"),
        ({b"phivision.shape": b"15"}, "shape '15'"),
    ],
)
def test_patches_of_an_unknown_shape_or_type_are_refused(
    told: dict[bytes, bytes], message: str, tmp_path: Path
) -> None:
    [files] = written(tmp_path, made_rows(5))
    for path in files:
        table = pq.ParquetFile(path).read()
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **told}), path)
    with pytest.raises(ShardError, match=rf"patches-00000\.parquet: its metadata say .*{message}"):
        PatchTable([files])


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_file_is_named(which: int, tmp_path: Path) -> None:
    files = written(tmp_path, made_rows(3))
    files[0][which].unlink()
    with pytest.raises(ShardError, match=files[0][which].name):
        verify_shard(tmp_path, 0)
    with pytest.raises(ShardError, match=files[0][which].name):
        PatchTable(files)


def test_files_of_different_shards_do_not_pass_for_one(tmp_path: Path) -> None:
    files = written(tmp_path, made_rows(5), made_rows(5, seed=1), made_rows(6, seed=2))
    files[1][1].replace(files[0][1])
    with pytest.raises(ShardError, match="row 0 do not have the norm"):
        verify_shard(tmp_path, 0)
    files[2][1].replace(files[0][1])
    with pytest.raises(ShardError, match="6 rows, but the index has 5"):
        verify_shard(tmp_path, 0)
    with pytest.raises(ShardError, match="6 rows, but the index has 5"):
        PatchTable(files[:1])
    files[2][0].replace(files[0][0])
    with pytest.raises(ShardError, match="not the index of shard 0"):
        verify_shard(tmp_path, 0)


def test_patches_of_another_encoder_do_not_pass_for_the_same(tmp_path: Path) -> None:
    rows = made_rows(3)
    write_shard(tmp_path / "other", 0, rows, "encoder-2")
    files = written(tmp_path, rows)
    shard_paths(tmp_path / "other", 0)[1].replace(files[0][1])
    with pytest.raises(ShardError, match="metadata differ"):
        verify_shard(tmp_path, 0)
    with pytest.raises(ShardError, match="metadata differ"):
        PatchTable(files)


def test_an_index_in_another_order_is_refused(tmp_path: Path) -> None:
    files = written(tmp_path, made_rows(5))
    index = pq.ParquetFile(files[0][0]).read()
    pq.write_table(index.take([0, 1, 3, 2, 4]), files[0][0])
    with pytest.raises(ShardError, match="not numbered"):
        PatchTable(files)
