"""The features stage: every image embedded once ever, and the same bytes however that came."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from model.encoder import CONFIG, WEIGHTS, PatchEncoder, save_clip
from model.encoder_table import ENCODERS, encoder_line, name_of_config
from model.tiny_clip import MEAN_STD, tiny_clip_config
from pipeline.data.schemas import IMAGE_FILES, IMAGES
from pipeline.engine.materialize import materialize
from pipeline.engine.stage import StageContext
from pipeline.errors import PipelineError, RecipeError
from pipeline.features.features import features
from pipeline.features.known_rows import find_known
from pipeline.recipe.parts import FeaturesPart
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.features.patches import PatchTable
from storage.features.shards import ShardError, shard_paths
from storage.store.artifacts import ArtifactStore
from storage.store.commits import commit
from storage.store.manifest import Manifest, fingerprint_of
from storage.tables import write_table
from tests.support.fake_stages import FakeStage, Quiet
from tests.support.store_fixtures import NOTHING

PART = FeaturesPart(
    layer=-1,
    second_layer=-1,
    patches=4,
    batch=8,
    precision="fp32",
    rows_per_shard=16,
    clip_scores=False,
)


class Folder:
    """A folder as a stage sees an artifact."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def names(self) -> list[str]:
        files = (path for path in self.root.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in files)

    def path(self, name: str) -> Path:
        return self.root / name

    def paths(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern))

    def directory(self, prefix: str) -> Path:
        return self.root / prefix


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return made_backbones(tmp_path_factory.mktemp("backbones"), seed=0)


def made_backbones(root: Path, seed: int) -> Folder:
    torch.manual_seed(seed)
    config = tiny_clip_config(
        image_size=32, patch_size=16, width=32, layers=2, text_width=32, text_layers=1, embed=16
    )
    (root / "clip").mkdir(parents=True)
    text = json.dumps({"model_cfg": config, "preprocess_cfg": MEAN_STD})
    (root / "clip" / CONFIG).write_text(text)
    clip = open_clip.create_model(f"local-dir:{root / 'clip'}", load_weights=False)
    save_clip(clip, config, root / "clip")
    return Folder(root)


def image(number: int) -> bytes:
    rng = np.random.default_rng(number)
    stream = io.BytesIO()
    pixels = rng.integers(0, 255, (5 + number % 3, 7, 3), np.uint8)
    Image.fromarray(pixels).resize((40 + number % 9, 50)).save(stream, "PNG")
    return stream.getvalue()


def images_in(root: Path, numbers: Iterable[int], per_file: int = 25) -> Folder:
    """Write an `images` artifact of these images, in this order."""
    rows, files = [], []
    for number in numbers:
        data = image(number)
        sha256 = hashlib.sha256(data).hexdigest()
        files.append({"sha256": sha256, "data": data})
        row = {"image_id": number, "split": "train", "sha256": sha256, "width": 40, "height": 50}
        rows.append(dict.fromkeys(IMAGES.names) | row)
    write_table(root / "images.parquet", rows, IMAGES)
    for start in range(0, len(files), per_file):
        part = files[start : start + per_file]
        write_table(root / f"files-{start // per_file:05d}.parquet", part, IMAGE_FILES)
    return Folder(root)


def embed(
    folder: Path,
    images: Folder,
    backbones: Folder,
    earlier: Sequence[Folder] = (),
    part: FeaturesPart = PART,
    **more: Any,
) -> tuple[Folder, Mapping[str, Any]]:
    """Run the stage and return what it wrote and its summary."""
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir(exist_ok=True)
    inputs = {"images": images, "backbones": backbones}
    context = StageContext(
        inputs,
        folder / "out",
        folder / "scratch",
        Settings(device="cpu"),
        Quiet(),
        earlier=lambda: earlier,
        **more,
    )
    return Folder(folder / "out"), features(context, part, 0)


def content(folder: Folder) -> dict[str, bytes]:
    return {name: folder.path(name).read_bytes() for name in folder.names}


@contextmanager
def forward_passes() -> Iterator[list[int]]:
    """Collect the size of every batch whose patches are computed while the block runs."""
    sizes: list[int] = []

    def count(module: torch.nn.Module, given: Any, made: Any) -> None:
        if isinstance(module, torch.nn.Conv2d):  # the encoder's one, which cuts the patches
            sizes.append(len(given[0]))

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        yield sizes
    finally:
        hook.remove()


def test_growing_a_subset_embeds_only_what_is_new(tmp_path: Path, backbones: Folder) -> None:
    first = images_in(tmp_path / "first", range(1000), per_file=300)
    more = images_in(tmp_path / "more", range(1100), per_file=300)
    part = PART.model_copy(update={"rows_per_shard": 256, "batch": 20})
    with forward_passes() as sizes:
        one, summary = embed(tmp_path / "a", first, backbones, part=part)
    assert (sum(sizes), summary["embedded"]) == (1000, 1000)
    with forward_passes() as sizes:
        grown, summary = embed(tmp_path / "b", more, backbones, [one], part=part)
    assert sum(sizes) == 100
    assert (summary["images"], summary["embedded"]) == (1100, 100)
    with forward_passes() as sizes:
        again, summary = embed(tmp_path / "c", first, backbones, [grown, one], part=part)
    assert sizes == []
    assert summary["embedded"] == 0
    assert content(again) == content(one)


def test_reused_rows_give_the_bytes_that_computing_gives(tmp_path: Path, backbones: Folder) -> None:
    some = images_in(tmp_path / "some", [3, 50, 9, 31, 44, 2, 17])
    others = images_in(tmp_path / "others", range(20, 47))
    every = images_in(tmp_path / "every", [*range(60, 20, -1), *range(21)])
    earlier = [
        embed(tmp_path / "a", some, backbones)[0],
        embed(tmp_path / "b", others, backbones)[0],
    ]
    reused, summary = embed(tmp_path / "c", every, backbones, earlier)
    assert 0 < summary["embedded"] < 61
    assert content(reused) == content(embed(tmp_path / "d", every, backbones)[0])


def test_a_row_does_not_depend_on_what_shares_its_batch(backbones: Folder) -> None:
    encoder = PatchEncoder(backbones.directory("clip"), -1)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3), np.uint8)
    whole = encoder.encode_shrunk(pixels, 32)
    for count in (1, 7, 31, 32):
        places = np.random.default_rng(count).permutation(32)[:count]
        found = encoder.encode_shrunk(pixels[places], 32)
        assert torch.equal(found.patches, whole.patches[places])
        assert torch.equal(found.pooled, whole.pooled[places])


def test_shrunk_images_give_what_open_clips_own_transform_gives(backbones: Folder) -> None:
    encoder = PatchEncoder(backbones.directory("clip"), -1)
    found = [Image.open(io.BytesIO(image(number))).convert("RGB") for number in range(5)]
    ours = encoder.encode_shrunk(np.stack([encoder.shrink(each) for each in found]), 5)
    theirs = encoder.encode_images(found)
    assert torch.equal(ours.patches, theirs.patches)
    assert torch.equal(ours.pooled, theirs.pooled)


def test_rows_of_another_encoder_are_not_taken(tmp_path: Path, backbones: Folder) -> None:
    images = images_in(tmp_path / "images", range(10))
    other = made_backbones(tmp_path / "other", seed=1)
    strange, _ = embed(tmp_path / "a", images, other)
    deeper, _ = embed(tmp_path / "b", images, backbones, part=PART.model_copy(update={"layer": -2}))
    found, summary = embed(tmp_path / "c", images, backbones, [strange, deeper])
    assert summary["embedded"] == 10
    assert content(found) != content(deeper)


def test_a_cache_that_is_damaged_or_gone_costs_work_and_no_more(
    tmp_path: Path, backbones: Folder
) -> None:
    images = images_in(tmp_path / "images", range(10))
    whole, _ = embed(tmp_path / "a", images, backbones)
    torn, _ = embed(tmp_path / "b", images, backbones)
    index = torn.path("index-00000.parquet")
    index.unlink()
    index.write_bytes(b"PAR1 and no more")
    gone = Folder(tmp_path / "c" / "out")
    found, summary = embed(tmp_path / "c", images, backbones, [torn])
    assert summary["embedded"] == 10
    assert content(found) == content(whole)
    assert find_known([torn, gone], "x", {"0" * 64}) == {}


def test_a_flipped_bit_in_an_earlier_shard_is_not_copied(tmp_path: Path, backbones: Folder) -> None:
    images = images_in(tmp_path / "images", range(40))
    whole, _ = embed(tmp_path / "a", images, backbones)
    damaged, _ = embed(tmp_path / "b", images, backbones)
    flip_bit(shard_paths(damaged.root, 0)[1], 700)  # in a row of patches
    flip_bit(shard_paths(damaged.root, 1)[0], pooled_place(damaged, 1))
    found, summary = embed(tmp_path / "c", images, backbones, [damaged])
    assert summary["embedded"] == 2 * 16  # the third shard is whole, and is used
    assert content(found) == content(whole)
    found, summary = embed(tmp_path / "d", images, backbones, [damaged, whole])
    assert summary["embedded"] == 0
    assert content(found) == content(whole)


def flip_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.unlink()  # the file may have other names
    path.write_bytes(data)


def pooled_place(folder: Folder, number: int) -> int:
    """Return where the first pooled embedding of a shard lies in its index."""
    path = shard_paths(folder.root, number)[0]
    pooled = pq.read_table(path)["pooled"][0].values.to_numpy()
    return path.read_bytes().index(pooled.tobytes())


def test_a_torn_earlier_shard_costs_its_rows_and_no_more(tmp_path: Path, backbones: Folder) -> None:
    images = images_in(tmp_path / "images", range(40))
    whole, _ = embed(tmp_path / "a", images, backbones)
    torn, _ = embed(tmp_path / "b", images, backbones)
    path = shard_paths(torn.root, 1)[1]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])
    shard_paths(torn.root, 2)[1].unlink()
    found, summary = embed(tmp_path / "c", images, backbones, [torn])
    assert summary["embedded"] == 40 - 16
    assert content(found) == content(whole)


def test_equal_images_are_embedded_once(tmp_path: Path, backbones: Folder) -> None:
    images = images_in(tmp_path / "images", [1, 2, 1, 3, 2], per_file=2)
    found, summary = embed(tmp_path / "a", images, backbones)
    assert summary["embedded"] == summary["images"] == 3
    pairs = zip(found.paths("index-*"), found.paths("patches-*"), strict=True)
    assert PatchTable(list(pairs)).index["image_id"].to_pylist() == [1, 2, 3]


def test_a_killed_run_goes_on_with_the_shards_it_has(tmp_path: Path, backbones: Folder) -> None:
    images = images_in(tmp_path / "images", range(40))
    whole, _ = embed(tmp_path / "a", images, backbones)
    shards = tmp_path / "b" / "scratch" / "shards"
    shards.mkdir(parents=True)
    for path in shard_paths(whole.root, 1):
        (shards / path.name).write_bytes(path.read_bytes())
    resumed, summary = embed(tmp_path / "b", images, backbones)
    assert summary["embedded"] == 40 - 16
    assert content(resumed) == content(whole)


def test_what_a_kill_left_half_written_is_no_part_of_the_artifact(
    tmp_path: Path, backbones: Folder
) -> None:
    images = images_in(tmp_path / "images", range(10))
    whole, _ = embed(tmp_path / "a", images, backbones)
    shards = tmp_path / "b" / "scratch" / "shards"
    shards.mkdir(parents=True)
    torn = shards / ".patches-00000.parquet.0a1b2c3d.tmp"
    torn.write_bytes(b"PAR1 and half a page")
    (shards / "notes.txt").write_text("not ours")
    resumed, _ = embed(tmp_path / "b", images, backbones)
    assert content(resumed) == content(whole)
    assert not torn.exists()


@pytest.mark.parametrize("damaged", ["index", "patches"])
def test_a_bit_that_flips_in_a_shard_after_the_kill_is_not_committed(
    tmp_path: Path, backbones: Folder, damaged: str
) -> None:
    images = images_in(tmp_path / "images", range(40))
    whole, _ = embed(tmp_path / "a", images, backbones)
    shards = tmp_path / "b" / "scratch" / "shards"
    shards.mkdir(parents=True)
    for number in range(2):
        for path in shard_paths(whole.root, number):
            (shards / path.name).write_bytes(path.read_bytes())
    at = shards / f"{damaged}-00001.parquet"
    data = bytearray(at.read_bytes())
    data[len(data) // 4] ^= 1
    at.write_bytes(data)
    resumed, summary = embed(tmp_path / "b", images, backbones)
    assert summary["embedded"] == 40 - 16
    assert content(resumed) == content(whole)


def test_another_number_of_patches_is_refused(tmp_path: Path, backbones: Folder) -> None:
    images = images_in(tmp_path / "images", range(3))
    wrong = PART.model_copy(update={"patches": 9})
    with pytest.raises(PipelineError, match=r"gives 4 patches.*9"):
        embed(tmp_path / "a", images, backbones, part=wrong)


def test_a_shard_that_cannot_be_written_stops_the_stage(tmp_path: Path, backbones: Folder) -> None:
    images = images_in(tmp_path / "images", range(40))
    broken = made_backbones(tmp_path / "broken", seed=0)
    from safetensors.torch import load_file, save_file

    weights = load_file(broken.directory("clip") / WEIGHTS)
    weights["visual.positional_embedding"][:] = float("nan")
    save_file(weights, broken.directory("clip") / WEIGHTS)
    with pytest.raises(ShardError, match="NaN"):
        embed(tmp_path / "a", images, broken)


# -- through the store ------------------------------------------------------------------------


def committed(store: ArtifactStore, stage: str, folder: Path) -> Manifest:
    payload = {"stage": stage, "folder": str(folder)}
    return commit(store, folder, payload, fingerprint_of(payload), NOTHING, warn=print)


def stage_with_four_patches(
    context: StageContext, part: FeaturesPart, seed: int
) -> Mapping[str, Any]:
    return features(context, part.model_copy(update={"patches": 4}), seed)


AS_TESTED = {
    "features.layer": -1,
    "features.batch": 8,
    "features.rows_per_shard": 16,
    "features.clip_scores": False,
}
FOUR_PATCHES = FakeStage(
    "features",
    inputs=("images", "backbones"),
    reads=("features",),
    call=lambda context, features, seed: stage_with_four_patches(context, features, seed),
)


def test_materialize_finds_earlier_rows_through_manifests(
    tmp_path: Path, backbones: Folder
) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    settings = Settings(store=str(tmp_path / "store"), workdir=tmp_path / "work", device="cpu")
    recipe = preset("demo").override(AS_TESTED)
    clip = committed(store, "backbones", backbones.root)

    def made(count: int, *, force: bool = False) -> Mapping[str, Any]:
        folder = tmp_path / f"images-{count}"
        if not folder.exists():
            images_in(folder, range(count))
        inputs = {"images": committed(store, "images", folder), "backbones": clip}
        outcome = materialize(FOUR_PATCHES, recipe, inputs, store, settings, Quiet(), force=force)
        return outcome.manifest.summary

    assert made(20)["embedded"] == 20
    assert made(27)["embedded"] == 7
    assert made(13)["embedded"] == 0
    assert made(13, force=True)["embedded"] == 13
    damaged = next(m for m in store.manifests("features") if m.summary["images"] == 27)
    flip_bit(shard_paths(tmp_path / "store" / damaged.folder, 1)[1], 700)
    for other in store.manifests("features"):  # only the damaged one is left to take rows from
        if other != damaged:
            store.files.remove(f"manifests/features/{other.fingerprint}.json")
    assert made(27)["embedded"] == 11
    assert store.manifests("features")[0].digest == damaged.digest


# -- the table of encoders --------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_named_by_its_configuration(name: str) -> None:
    assert name_of_config(open_clip.get_model_config(name)) == name


def test_a_configuration_of_our_own_has_no_name() -> None:
    config = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"]["layers"] = 3
    assert name_of_config(config) is None


@pytest.mark.parametrize("name", ENCODERS)
def test_the_table_says_what_open_clip_says(name: str) -> None:
    line, config = ENCODERS[name], open_clip.get_model_config(name)
    assert config is not None
    for tag, repository in line.tags.items():
        assert open_clip.get_pretrained_cfg(name, tag)["hf_hub"] == f"{repository}/"
    vision = config["vision_cfg"]
    assert vision["image_size"] == line.image
    if "timm_model_name" not in vision:
        found = (vision["patch_size"], vision["width"], vision["layers"])
        assert found == (line.patch, line.width, line.layers)
        return
    import timm

    with torch.device("meta"):
        trunk: Any = timm.create_model(vision["timm_model_name"])
    assert trunk.patch_embed.num_patches == line.patches
    assert (trunk.embed_dim, len(trunk.blocks)) == (line.width, line.layers)


def test_every_other_vision_transformer_of_open_clip_tells_its_own_shape(tmp_path: Path) -> None:
    weights = tmp_path / "own.safetensors"
    weights.touch()
    shape = {"features.patches": 256, "pretrain.projector.tokens": 256}
    named = {"backbones.clip_name": "ViT-H-14", "backbones.clip_pretrained": str(weights)}
    preset("coco").override({**named, **shape})
    with pytest.raises(RecipeError, match="gives 256 patches"):
        preset("coco").override(named)
    assert encoder_line("ViT-H-14")[:4] == (224, 14, 1280, 32)
    for name in ("RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP2", "../../ViT-H-14"):
        with pytest.raises(KeyError):
            encoder_line(name)


def test_the_shape_that_a_configuration_states_is_the_models() -> None:
    tower: Any = open_clip.create_model("ViT-S-32", load_weights=False).visual
    line = encoder_line("ViT-S-32")
    assert tower.conv1.weight.shape == (line.width, 3, line.patch, line.patch)
    assert (len(tower.transformer.resblocks), tower.image_size[0]) == (line.layers, line.image)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbones.clip_name": "ViT-B-99"}, "no encoder 'ViT-B-99'"),
        ({"backbones.clip_pretrained": "nobodys"}, "has no weights 'nobodys'"),
        ({"backbones.clip_name": "ViT-B-16-quickgelu"}, "196 patches"),
        ({"features.layer": -13}, "12 layers"),
        (
            {"backbones.clip_name": "ViT-B-16-quickgelu", "features.patches": 196},
            "196 patches and the projector's tokens is 49",
        ),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_in_the_recipe(
    changes: Mapping[str, object], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        preset("coco").override(changes)


def test_local_weights_are_a_choice(tmp_path: Path) -> None:
    from pipeline.backbones.backbones import probe_backbones

    weights = tmp_path / "own.safetensors"
    weights.write_bytes(b"one")
    recipe = preset("coco").override({"backbones.clip_pretrained": str(weights)})
    before = probe_backbones(recipe)
    weights.write_bytes(b"another")
    assert probe_backbones(recipe) != before
    # Without network and cache nobody can say which commit the published weights are at.
    assert probe_backbones(preset("coco")) == {"clip": {}}
