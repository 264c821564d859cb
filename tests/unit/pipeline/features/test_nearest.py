"""The image most similar to each image, compared with a plain search."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.engine.dag import BY_NAME
from pipeline.features import nearest
from pipeline.features.nearest import NEAREST, nearest_images
from pipeline.recipe.presets import preset
from storage.features.shards import ShardRows, write_shard

COUNT, WIDTH, SHARD = 60, 6, 25
SPLITS = ("train", "train", "validation", "test", "train")


def write_shards(folder: Path, pooled: np.ndarray, splits: list[str]) -> list[Path]:
    """Write index files of images whose hashes are not in the order of their rows."""
    count = len(pooled)
    hashes = [f"{number * 37 % 101:064x}" for number in range(count)]
    for shard, start in enumerate(range(0, count, SHARD)):
        part = slice(start, start + SHARD)
        size = len(hashes[part])
        write_shard(
            folder,
            shard,
            ShardRows(
                sha256=hashes[part],
                image_id=np.arange(count, dtype=np.int64)[part],
                width=np.full(size, 8, np.int32),
                height=np.full(size, 8, np.int32),
                split=splits[part],
                patches=np.ones((size, 4, 8), np.float16),
                pooled=pooled[part].astype(np.float32),
            ),
            "encoder",
        )
    return sorted(folder.glob("index-*"))


def plain(hashes: list[str], pooled: np.ndarray, splits: list[str]) -> list[tuple]:
    """The same, one pair of images after the other."""
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    found = []
    for one, name in enumerate(hashes):
        best: dict[str, tuple[float, str]] = {}
        for other, also in enumerate(hashes):
            if one == other:
                continue
            cosine = float(unit[one] @ unit[other])
            kinds = ["any"]
            kinds += ["earlier"] if splits[one] == splits[other] and also < name else []
            kinds += ["test"] if splits[other] == "test" and splits[one] != "test" else []
            for kind in kinds:
                best[kind] = max(best.get(kind, (-2.0, "")), (cosine, also))
        found.append(tuple(best.get(kind) for kind in ("any", "earlier", "test")))
    return found


@pytest.mark.parametrize("block", [7, 512])
def test_every_image_has_its_nearest_others(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "BLOCK", block)
    pooled = np.random.default_rng(0).standard_normal((COUNT, WIDTH))
    splits = [SPLITS[number % 5] for number in range(COUNT)]
    ticks: list[int] = []
    table = nearest_images(write_shards(tmp_path, pooled, splits), "cpu", ticks.append)
    rows = table.to_pylist()
    assert table.schema == NEAREST
    assert sum(ticks) == COUNT
    expected = plain([row["sha256"] for row in rows], pooled, splits)
    for row, (nearby, earlier, tested) in zip(rows, expected, strict=True):
        assert row["nearest_sha256"] == nearby[1]
        assert row["similarity"] == pytest.approx(nearby[0], abs=1e-4)
        for name, best in (("duplicate_similarity", earlier), ("test_similarity", tested)):
            assert row[name] == (None if best is None else pytest.approx(best[0], abs=1e-4))


def test_of_a_group_of_duplicates_one_is_kept(tmp_path: Path) -> None:
    pooled = np.eye(WIDTH)[[0, 0, 0, 1, 1, 2]] + 1e-4
    paths = write_shards(tmp_path, pooled, ["train"] * 4 + ["test", "train"])
    rows = nearest_images(paths, "cpu", lambda _: None).to_pylist()
    kept = [row for row in rows if (row["duplicate_similarity"] or 0) < 0.97]
    assert len([row for row in rows[:3] if row in kept]) == 1
    assert rows[3] in kept  # its copy is a test image
    assert rows[3]["test_similarity"] == pytest.approx(1, abs=1e-3)
    assert rows[4]["test_similarity"] is None


def test_a_single_image_has_no_other(tmp_path: Path) -> None:
    (row,) = nearest_images(
        write_shards(tmp_path, np.ones((1, WIDTH)), ["train"]), "cpu", lambda _: None
    ).to_pylist()
    assert {name: row[name] for name in NEAREST.names[1:]} == dict.fromkeys(NEAREST.names[1:])
    assert pa.Table.from_pylist([row], schema=NEAREST).num_rows == 1


def test_examples_wait_for_embeddings_only_where_a_filter_compares_images() -> None:
    plain_recipe = preset("demo").override({"examples.filters.short": "tokens < 4"})
    compared = plain_recipe.override({"examples.filters.twin": "duplicate_similarity > 0.97"})
    stage = BY_NAME["examples"]
    assert "features" not in stage.inputs_with(plain_recipe)
    assert "features" in stage.inputs_with(compared)
