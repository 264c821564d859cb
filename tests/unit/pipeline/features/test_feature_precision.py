"""Features in bf16, and in the precision that `auto` takes on a machine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engine import precision
from pipeline.engine.materialize import materialize
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.features.patches import PatchTable
from storage.features.shards import shard_paths
from storage.store.artifacts import ArtifactStore
from tests.support.fake_stages import Quiet
from tests.unit.pipeline.features.test_features import (
    AS_TESTED,
    FOUR_PATCHES,
    PART,
    Folder,
    committed,
    content,
    embed,
    images_in,
    made_backbones,
)

HALF = PART.model_copy(update={"precision": "bf16"})
AUTO = PART.model_copy(update={"precision": "auto"})


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return made_backbones(tmp_path_factory.mktemp("backbones"), seed=0)


def rows_of(folder: Folder) -> Any:
    """All patches, float32."""
    table = PatchTable(list(zip(folder.paths("index-*"), folder.paths("patches-*"), strict=True)))
    return table.gather(np.arange(len(table))).astype(np.float32)


def measuring(monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float) -> None:
    monkeypatch.setattr(precision, "measured", lambda *_: [fp32, bf16])


def test_bf16_features_are_close_and_are_no_rows_of_fp32(tmp_path: Path, backbones: Folder) -> None:
    images = images_in(tmp_path / "images", range(20))
    single, stated = embed(tmp_path / "a", images, backbones)
    assert stated["precision"] == "fp32"
    half, summary = embed(tmp_path / "b", images, backbones, [single], part=HALF)
    assert (summary["precision"], summary["embedded"]) == ("bf16", 20)
    again, summary = embed(tmp_path / "c", images, backbones, [single, half], part=HALF)
    assert summary["embedded"] == 0
    assert content(again) == content(half)
    assert not np.array_equal(rows_of(half), rows_of(single))
    np.testing.assert_allclose(rows_of(half), rows_of(single), atol=0.05)


def test_auto_writes_what_the_measured_precision_writes(
    tmp_path: Path, backbones: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_in(tmp_path / "images", range(10))
    for name, part, seconds in (("fp32", PART, (1.0, 2.0)), ("bf16", HALF, (2.0, 1.0))):
        measuring(monkeypatch, *seconds)
        chosen, summary = embed(tmp_path / f"{name}-auto", images, backbones, part=AUTO)
        assert summary["precision"] == name
        assert (summary["fp32_ms"], summary["bf16_ms"]) == tuple(1e3 * s for s in seconds)
        assert content(chosen) == content(embed(tmp_path / name, images, backbones, part=part)[0])


def test_auto_measures_the_encoder_itself(tmp_path: Path, backbones: Folder) -> None:
    images = images_in(tmp_path / "images", range(3))
    _, summary = embed(tmp_path / "a", images, backbones, part=AUTO)
    assert summary["precision"] in ("fp32", "bf16")
    assert min(summary["fp32_ms"], summary["bf16_ms"]) > 0


def test_a_killed_run_goes_on_in_its_precision(
    tmp_path: Path, backbones: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_in(tmp_path / "images", range(40))
    whole, _ = embed(tmp_path / "a", images, backbones, part=HALF)
    measuring(monkeypatch, 2.0, 1.0)

    embed(tmp_path / "b", images, backbones, part=AUTO)  # and is killed before it is committed
    for path in shard_paths(tmp_path / "b/scratch/shards", 1):
        path.unlink()
    (tmp_path / "b/out").rename(tmp_path / "left")
    measuring(monkeypatch, 1.0, 2.0)  # as on a machine without instructions for bf16
    resumed, summary = embed(tmp_path / "b", images, backbones, part=AUTO)
    assert (summary["precision"], summary["embedded"]) == ("bf16", 16)
    assert content(resumed) == content(whole)


def test_auto_is_fresh_whatever_precision_made_it(
    tmp_path: Path, backbones: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    settings = Settings(store=str(tmp_path / "store"), workdir=tmp_path / "work", device="cpu")
    images = committed(store, "images", images_in(tmp_path / "images", range(5)).root)
    inputs = {"images": images, "backbones": committed(store, "backbones", backbones.root)}

    def outcome(wanted: str) -> tuple[str, str]:
        recipe = preset("demo").override({**AS_TESTED, "features.precision": wanted})
        made = materialize(FOUR_PATCHES, recipe, inputs, store, settings, Quiet())
        return made.status, made.manifest.summary["precision"]

    measuring(monkeypatch, 1.0, 2.0)
    assert outcome("auto") == ("made", "fp32")
    measuring(monkeypatch, 2.0, 1.0)
    assert outcome("auto") == ("cached", "fp32")
    assert outcome("bf16") == ("made", "bf16")
    assert outcome("fp32") == ("made", "fp32")
