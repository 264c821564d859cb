"""`patch_grid`: the patches of a features artifact as lists in SQL."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage.errors import StorageError
from storage.features.shards import write_shard
from storage.sql.queries import Database
from tests.unit.storage.features.test_shards import made_rows


def opened(folder: Path, count: int = 140) -> tuple[Database, np.ndarray]:
    rows = made_rows(count)
    write_shard(folder, 0, rows, "encoder")
    sources = {
        "patches": sorted(folder.glob("patches-*")),
        "features": sorted(folder.glob("index-*")),
        "odd": pa.table({"data": pa.array([None, bytes(30), None], pa.binary())}),
    }
    return Database(sources), rows.patches


def test_a_row_is_a_list_of_its_patches(tmp_path: Path) -> None:
    database, patches = opened(tmp_path)
    with database:
        table = database.query("SELECT patch_grid(patches) AS grid FROM patches")
        found = np.array(table["grid"].to_pylist(), np.float32)
        assert np.array_equal(found, patches.astype(np.float32))


def test_patches_can_be_computed_with(tmp_path: Path) -> None:
    database, patches = opened(tmp_path)
    with database:
        table = database.read_only(
            "SELECT len(patch_grid(patches)) AS patches, list_sum(patch_grid(patches)[2]) AS total "
            "FROM patches"
        )
    assert set(table["patches"].to_pylist()) == {3}
    totals = patches[:, 1].astype(np.float64).sum(axis=1)
    assert np.allclose(table["total"].to_numpy(), totals, atol=1e-4)


def test_of_two_encoders_each_row_has_its_own_grid(tmp_path: Path) -> None:
    rows = made_rows(3)
    other = replace(rows, patches=rows.patches[:, :2])  # of 3 by 5 the first two
    write_shard(tmp_path, 0, rows, "encoder")
    write_shard(tmp_path / "second", 0, other, "another")
    both = {"patches": tmp_path, "second_patches": tmp_path / "second"}
    sources = {name: sorted(folder.glob("patches-*")) for name, folder in both.items()}
    with Database(sources) as database:
        for name, expected in (("patches", rows.patches), ("second_patches", other.patches)):
            table = database.query(f"SELECT patch_grid(patches) AS grid FROM {name}")
            found = np.array(table["grid"].to_pylist(), np.float32)
            assert np.array_equal(found, expected.astype(np.float32))
        with pytest.raises(StorageError, match="takes 30 or 20 bytes, not 3"):
            database.query("SELECT patch_grid('abc'::BLOB)")


def test_shapes_of_one_size_are_not_told_apart(tmp_path: Path) -> None:
    rows = made_rows(3)
    other = replace(rows, patches=rows.patches.reshape(3, 5, 3))
    write_shard(tmp_path, 0, rows, "encoder")
    write_shard(tmp_path / "second", 0, other, "another")
    both = {"patches": tmp_path, "second_patches": tmp_path / "second"}
    sources = {name: sorted(folder.glob("patches-*")) for name, folder in both.items()}
    with Database(sources) as database, pytest.raises(StorageError, match="ask for one view"):
        database.query("SELECT patch_grid(patches) FROM patches")


def test_null_stays_null_and_another_size_is_refused(tmp_path: Path) -> None:
    database, _ = opened(tmp_path)
    with database:
        found = database.query("SELECT patch_grid(data) IS NULL AS none FROM odd")
        assert found["none"].to_pylist() == [True, False, True]
        with pytest.raises(StorageError, match="takes 30 bytes, not 3"):
            database.query("SELECT patch_grid('abc'::BLOB)")
        assert database.query("SELECT patch_grid(data) FROM odd WHERE false").num_rows == 0
