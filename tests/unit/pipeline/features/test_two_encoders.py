"""Two encoders in the feature store: neither embeds anything again because of the other."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.decoding import decode_image
from model.errors import ModelError
from model.joined_encoders import JoinedEncoders
from pipeline.data.joined_patches import JoinedPatches
from pipeline.data.stored_images import NO_LIMIT, has_second, open_first, open_patches
from pipeline.errors import PipelineError
from storage.features.patches import PatchTable
from storage.features.shards import shard_paths
from tests.unit.model.test_timm_encoder import encoder_of
from tests.unit.pipeline.features.test_features import (
    PART,
    Folder,
    content,
    embed,
    flip_bit,
    forward_passes,
    image,
    images_in,
    made_backbones,
)

TWO = PART.model_copy(update={"patches": 9})  # between the first grid, 2 by 2, and the second


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return images_in(tmp_path_factory.mktemp("images"), range(20))


def backbones_of(root: Path, *, second: str | int | None = None, first: int = 0) -> Folder:
    """Return an artifact of `backbones`: a tiny CLIP, and another one or a model of timm."""
    folder = made_backbones(root, first)
    if isinstance(second, int):
        shutil.copytree(made_backbones(root / "other", second).root / "clip", root / "second")
        shutil.rmtree(root / "other")
    elif second is not None:
        (root / "made").mkdir()
        encoder_of(second, root / "made")
        (root / "made" / "clip").rename(root / "second")
        shutil.rmtree(root / "made")
    return folder


def run(
    tmp_path: Path,
    name: str,
    images: Folder,
    earlier: Sequence[Folder],
    *,
    second: str | int | None,
    first: int = 0,
) -> tuple[Folder, Mapping[str, Any]]:
    part = PART if second is None else TWO
    chosen = backbones_of(tmp_path / f"{name}-backbones", second=second, first=first)
    return embed(tmp_path / name, images, chosen, earlier, part)


def test_a_second_encoder_embeds_nothing_of_the_first_again(tmp_path: Path, images: Folder) -> None:
    alone, summary = run(tmp_path, "a", images, [], second=None)
    assert summary["embedded"] == 20
    assert "second_embedded" not in summary
    both, summary = run(tmp_path, "ab", images, [alone], second="test_vit")
    assert (summary["embedded"], summary["second_embedded"]) == (0, 20)
    changed, summary = run(tmp_path, "ac", images, [both, alone], second="test_efficientnet")
    assert (summary["embedded"], summary["second_embedded"]) == (0, 20)
    again, summary = run(tmp_path, "ab again", images, [changed, both], second="test_vit")
    assert (summary["embedded"], summary["second_embedded"]) == (0, 0)
    assert content(again) == content(both)
    other, summary = run(tmp_path, "db", images, [both], second="test_vit", first=1)
    assert (summary["embedded"], summary["second_embedded"]) == (20, 0)
    removed, summary = run(tmp_path, "a again", images, [other, changed], second=None)
    assert summary["embedded"] == 0
    assert content(removed) == content(alone)
    # The shards of an encoder are the same bytes with and without another one beside it.
    assert content(alone).items() <= content(both).items()
    assert set(content(both)) - set(content(alone)) == {
        "joined.json",
        *(
            f"second/{kind}-{number:05d}.parquet"
            for kind in ("index", "patches")
            for number in (0, 1)
        ),
    }


def test_encoders_that_change_places_embed_nothing(tmp_path: Path, images: Folder) -> None:
    before, _ = run(tmp_path, "a", images, [], second=1)
    swapped, summary = run(tmp_path, "b", images, [before], second=0, first=1)
    assert (summary["embedded"], summary["second_embedded"]) == (0, 0)
    for name in ("index-00001.parquet", "patches-00001.parquet"):
        assert content(swapped)[name] == content(before)[f"second/{name}"]


def test_a_damaged_shard_of_the_second_encoder_costs_its_rows(
    tmp_path: Path, images: Folder
) -> None:
    whole, _ = run(tmp_path, "a", images, [], second="test_vit")
    damaged, _ = run(tmp_path, "b", images, [], second="test_vit")
    flip_bit(shard_paths(damaged.root / "second", 0)[1], 700)
    found, summary = run(tmp_path, "c", images, [damaged], second="test_vit")
    assert (summary["embedded"], summary["second_embedded"]) == (0, 16)
    assert content(found) == content(whole)


def test_a_killed_run_keeps_the_shards_of_both(tmp_path: Path, images: Folder) -> None:
    whole, _ = run(tmp_path, "a", images, [], second="test_vit")
    scratch = tmp_path / "b" / "scratch"
    shutil.copytree(whole.root, scratch / "shards", ignore=shutil.ignore_patterns("second", "n*"))
    (scratch / "second-shards").mkdir()
    for path in shard_paths(whole.root / "second", 1):
        shutil.copy(path, scratch / "second-shards")
    resumed, summary = run(tmp_path, "b", images, [], second="test_vit")
    assert (summary["embedded"], summary["second_embedded"]) == (0, 16)
    assert content(resumed) == content(whole)


def test_training_and_answering_see_the_same_bits(tmp_path: Path, images: Folder) -> None:
    one_by_one = TWO.model_copy(update={"batch": 1})  # as an assistant encodes
    backbones = backbones_of(tmp_path / "backbones", second="test_vit")
    made, _ = embed(tmp_path / "a", images, backbones, part=one_by_one)
    assert has_second(made)
    assert has_second(backbones)
    patches = open_patches(made)
    assert isinstance(patches, JoinedPatches)
    assert patches.shape == (9, 32 + 64)
    encoders = JoinedEncoders(backbones.root, [-1, -1], 9, "cpu")
    stored = torch.from_numpy(patches.gather(np.arange(20))).float()
    for number, sha256 in enumerate(patches.index["sha256"].to_pylist()):
        assert patches.rows_of([sha256]).tolist() == [number]
        picture = decode_image(image(patches.index["image_id"][number].as_py()), NO_LIMIT)
        assert torch.equal(encoders.encode([picture])[0], stored[number])


def test_rows_come_in_the_order_asked_for(tmp_path: Path, images: Folder) -> None:
    made, _ = run(tmp_path, "a", images, [], second="test_vit")
    patches = open_patches(made)
    order = np.array([7, 0, 19, 7, *range(20), *range(20), *range(20), *range(20)])
    assert np.array_equal(patches.gather(order), patches.gather(np.arange(20))[order])
    assert patches.gather(np.empty(0, np.int64)).shape == (0, 9, 96)
    assert open_first(made).shape == (4, 32)


def test_shards_of_other_images_are_refused(tmp_path: Path, images: Folder) -> None:
    made, _ = run(tmp_path, "a", images, [], second="test_vit")
    fewer, _ = run(tmp_path, "b", images_in(tmp_path / "few", range(19)), [], second="test_vit")
    first = open_first(made)
    pairs = zip(fewer.paths("second/index-*"), fewer.paths("second/patches-*"), strict=True)
    with pytest.raises(PipelineError, match=r"different images \(20 and 19\)"):
        JoinedPatches(first, PatchTable(list(pairs)), 9)


def test_other_processes_make_the_same_shards(tmp_path: Path, images: Folder) -> None:
    backbones = backbones_of(tmp_path / "backbones", second="test_vit")
    here, _ = embed(tmp_path / "a", images, backbones, part=TWO)
    there, summary = embed(
        tmp_path / "b", images, backbones, part=TWO, fan_out=lambda make, jobs: map(make, jobs)
    )
    assert (summary["embedded"], summary["second_embedded"]) == (20, 20)
    assert content(there) == content(here)


@pytest.mark.parametrize("fault", ["layer", "grid"])
def test_a_second_encoder_that_does_not_fit_is_told_before_anything_is_embedded(
    tmp_path: Path, images: Folder, fault: str
) -> None:
    backbones = backbones_of(tmp_path / "backbones", second="test_efficientnet")
    part, words = TWO, "second/ gives 50 patches, which form no square grid"
    if fault == "layer":
        part, words = TWO.model_copy(update={"second_layer": -9}), r"has 5 layers.*\n.*second_layer"
    else:
        config = backbones.root / "second" / "config.json"
        stated = json.loads(config.read_text())
        stated["pretrained_cfg"]["input_size"] = [3, 160, 320]
        config.write_text(json.dumps(stated))
    with forward_passes() as sizes, pytest.raises((ModelError, PipelineError), match=words):
        embed(tmp_path / "a", images, backbones, part=part)
    assert set(sizes) <= {1}  # the one black image
