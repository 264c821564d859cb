"""Two tiny encoders of timm beside each other, through every stage and out of the bundle."""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from flows.commands.options import preset_and_changes
from model.assistant import Assistant, load_assistant
from model.errors import ModelError
from model.explanation import explain
from pipeline.catalog.catalog import Catalog
from pipeline.costs.backbone_sizes import vision_width
from pipeline.costs.generation import writings
from pipeline.data.stored_images import image_bytes, open_patches
from pipeline.engine.dag import BY_NAME
from pipeline.engine.materialize import Outcome
from pipeline.errors import PipelineError, RecipeError
from pipeline.publishing.export import trace, write_repository
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from tests.unit.model.test_gguf_model import tiny_llama, write_gguf
from tests.unit.pipeline.test_captions_only import COLOURS, TRAINED, run, write_photos

pytestmark = pytest.mark.timeout(900)

FIRST, SECOND = "test_efficientnet", "test_vit"  # 5 by 5 of width 256, 10 by 10 of width 64
STAGES = [BY_NAME[name] for name in ("images", "conversations", "backbones", "features")]
GRID = 49  # the first grid is interpolated, the second averaged


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The preset `photos` made tiny, with one encoder out of a local folder."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "photos")
    write_gguf(folder / "tiny.gguf", tiny_llama())
    torch.manual_seed(0)
    for name in (FIRST, SECOND):
        (folder / name).mkdir()
        save_file(timm.create_model(name).state_dict(), folder / name / "model.safetensors")
    return preset("photos").override(
        {
            "images.source.root": str(folder / "photos"),
            "images.validation_share": 0.25,
            "backbones.clip_name": f"timm/{FIRST}",
            "backbones.clip_pretrained": str(folder / FIRST),
            "backbones.lm_repository": str(folder / "tiny.gguf"),
            "features.batch": 1,  # as an assistant encodes, so that bits can be compared
            "features.patches": 25,
            "examples.max_tokens": 160,
            "pretrain.projector.tokens": 4,
            "pretrain.precision": "fp32",
            "finetune.precision": "fp32",
            "finetune.least_image_gain": 0,
            "pretrain.batch": 4,
            "pretrain.micro_batch": 4,
            "finetune.batch": 4,
            "finetune.micro_batch": 4,
            "evaluate.max_new_tokens": 4,
            "evaluate.caption_samples": 0,
            "evaluate.resamples": 50,
        }
    )


@pytest.fixture(scope="module")
def recipe(alone: Recipe) -> Recipe:
    folder = Path(str(dict(alone.leaves())["backbones.clip_pretrained"])).parent
    return alone.override(
        {
            "backbones.second_name": f"timm/{SECOND}",
            "backbones.second_pretrained": str(folder / SECOND),
            "features.second_layer": -2,
            "features.patches": GRID,
        }
    )


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, alone: Recipe, recipe: Recipe
) -> tuple[ArtifactStore, Mapping[str, Outcome], Mapping[str, Outcome]]:
    """A store, what one encoder made up to its features, and what both made in all stages."""
    folder = tmp_path_factory.mktemp("two")
    before = run(alone, folder, STAGES)
    made = run(recipe, folder)
    return ArtifactStore(str(folder / "store"), folder / "work" / "cache"), before, made


Made = tuple[ArtifactStore, Mapping[str, Outcome], Mapping[str, Outcome]]


@pytest.fixture
def bundle(made: Made) -> Path:
    store, _, outcomes = made
    return store.artifact(outcomes["publish"].manifest).path("bundle.json").parent


def photo() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (100, 70), COLOURS["red"]).save(stream, "PNG")
    return stream.getvalue()


def test_a_second_encoder_is_added_without_embedding_with_the_first(made: Made) -> None:
    store, before, outcomes = made
    alone, both = (each["features"].manifest for each in (before, outcomes))
    assert (alone.summary["embedded"], both.summary["embedded"]) == (30, 0)
    assert both.summary["second_embedded"] == 30
    of_one, of_both = (store.artifact(each) for each in (alone, both))
    for name in of_one.names:
        assert of_both.path(name).read_bytes() == of_one.path(name).read_bytes()
    summary = outcomes["backbones"].manifest.summary
    assert (summary["clip"], summary["second"]) == (f"timm/{FIRST}", f"timm/{SECOND}")
    prefix = store.artifact(outcomes["pretrain"].manifest).path("vision_prefix.json")
    stated = json.loads(prefix.read_text())
    assert (stated["vision_width"], stated["patches"]) == (256 + 64, GRID)


def test_the_assistant_sees_what_training_saw(made: Made, bundle: Path) -> None:
    store, _, outcomes = made
    assistant = Assistant(bundle)
    patches = open_patches(store.artifact(outcomes["features"].manifest))
    images = store.artifact(outcomes["images"].manifest)
    hashes = patches.index["sha256"].to_pylist()
    stored = torch.from_numpy(patches.gather(patches.rows_of(hashes))).float()
    seen = dict(image_bytes(images, set(hashes)))
    for number, sha256 in enumerate(hashes):
        assert torch.equal(assistant.see(seen[sha256]), stored[number])
    assert isinstance(assistant.caption([photo()])[0], str)
    assert isinstance(assistant.ask(photo(), "What is it?"), str)


def test_where_it_looked_is_a_map_of_the_joined_grid(bundle: Path) -> None:
    found = explain(Assistant(bundle), photo(), "What is it?", "a red thing")
    assert found.words == ["a", "red", "thing"]
    assert found.maps.shape == (3, GRID)
    # What the first encoder sees: it crops the middle square.
    assert (found.view.width, found.view.height) == (pytest.approx(0.95 * 70, abs=0.5),) * 2


def test_the_warning_about_unlike_images_is_the_first_encoders(bundle: Path) -> None:
    assistant = Assistant(bundle)
    assert assistant.reference is not None
    assert assistant.reference.pooled.shape[1] == 256
    seen = assistant.see(photo())
    other = torch.cat([seen[:, :256], 100 * torch.rand(GRID, 64)], dim=1)
    similarity = assistant.reference.similarity
    assert similarity(other) == similarity(seen)
    assert similarity(seen.flip(1)) != similarity(seen)


def test_cards_name_both_encoders(bundle: Path) -> None:
    card = json.loads((bundle / "bundle.json").read_text())
    assert (card["format"], card["layer"], card["second_layer"]) == (2, -1, -2)
    text = (bundle / "README.md").read_text()
    assert f"| image encoder, frozen | timm/{FIRST}; {GRID} patches |" in text
    assert f"| second image encoder, frozen | timm/{SECOND}; joined to the first" in text
    assert "what two frozen encoders\nsee in an image" in text


def test_an_export_loads_and_hides_where_the_weights_were(
    made: Made, bundle: Path, tmp_path: Path
) -> None:
    store, _, outcomes = made
    write_repository(trace(store, outcomes["publish"].manifest), tmp_path / "out", "merged")
    loaded = load_assistant(tmp_path / "out")
    assert torch.equal(loaded.see(photo()), Assistant(bundle).see(photo()))
    assert loaded.caption([photo()]) == Assistant(bundle).caption([photo()])
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"| second encoder | timm/{SECOND}, with weights from elsewhere |" in text
    assert f"backbones.second_pretrained = {SECOND}\n" in text
    assert "create_model_and_transforms" not in text  # which would be one encoder of two
    shutil.rmtree(tmp_path / "out" / "second")
    with pytest.raises(ModelError, match="second has no open_clip_config"):
        load_assistant(tmp_path / "out")


def test_sql_shows_the_shards_of_each(made: Made) -> None:
    store, before, _ = made
    catalog = Catalog(store)
    sql = (
        "SELECT len(patch_grid(patches)) AS patches, len(patch_grid(patches)[1]) AS width, "
        "count(*) AS images FROM {} GROUP BY ALL"
    )
    for view, shape in (("patches", (25, 256)), ("second_patches", (100, 64))):
        (row,) = catalog.query(sql.format(view), printable=False).to_pylist()
        assert (row["patches"], row["width"], row["images"]) == (*shape, 30)
    joined = (
        "SELECT count(*) AS images FROM features f JOIN second_features s USING (sha256) "
        "WHERE f.shard = s.shard AND f.row = s.row"
    )
    assert catalog.query(joined, printable=False)["images"].to_pylist() == [30]
    first = next(run["run"] for run in catalog.runs if "publish" not in run["stages"])
    assert before["features"].manifest == Catalog(store, first).manifest("features")
    with pytest.raises(StorageError, match="second_patches is empty: the embeddings are of one"):
        Catalog(store, first).query("FROM second_patches", printable=False)


def test_training_goes_on_from_a_bundle_of_two_encoders(
    bundle: Path, recipe: Recipe, tmp_path: Path
) -> None:
    _, fields = preset_and_changes("photos", None, None, None, str(bundle))
    kept = {name: value for name, value in recipe.leaves() if name.split(".")[0] in TRAINED}
    small = {name: value for name, value in kept.items() if name not in fields}
    root = dict(recipe.leaves())["images.source.root"]
    going_on = preset("photos").override(
        {**small, **fields, "images.source.root": root, "images.validation_share": 0.25}
    )
    assert going_on.features.second_layer == -2
    stages = [*STAGES, BY_NAME["examples"], BY_NAME["pretrain"]]
    outcomes = run(going_on, tmp_path, stages)
    assert {outcome.status for outcome in outcomes.values()} == {"made"}
    one = going_on.override(
        {
            "backbones.second_name": "",
            "backbones.second_pretrained": "",
            "features.patches": 25,
        }
    )
    with pytest.raises(
        PipelineError, match="the bundle's vision_width is 320, the recipe's is 256"
    ):
        run(one, tmp_path, stages)


def test_a_layer_that_an_encoder_lacks_is_told(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"6 layers, and layer -9 .*\n.*features\.second_layer"):
        run(recipe.override({"features.second_layer": -9}), tmp_path, STAGES)


# -- the recipe ------------------------------------------------------------------------------------

SIGLIP = {"backbones.second_name": "ViT-B-16-SigLIP", "backbones.second_pretrained": "webli"}


def test_plans_count_both_encoders(recipe: Recipe, alone: Recipe) -> None:
    assert (vision_width(alone), vision_width(recipe)) == (256, 256 + 64)
    both = preset("coco").override(SIGLIP)
    assert vision_width(both) == 2 * 768
    (_, chat), (_, before) = writings(both), writings(preset("coco"))
    assert chat.encoder == before.encoder + 4 * (12 * 12 * 768**2 + 3 * 16**2 * 768)


def test_a_plan_for_hardware_names_both(capsys: pytest.CaptureFixture[str]) -> None:
    from flows.cli import main

    changes = [part for name, value in SIGLIP.items() for part in ("--set", f"{name}={value}")]
    main(["plan", "--preset", "coco", *changes, "--hardware", "80GB"])
    said = " ".join(capsys.readouterr().out.split())
    assert "with the encoders ViT-B-32-quickgelu and ViT-B-16-SigLIP." in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features.patches": 50}, "features.patches=50 is no square: set 49"),
        ({"backbones.second_name": ""}, "second_pretrained is webli, but second_name is empty"),
        ({"backbones.second_pretrained": ""}, "ViT-B-16-SigLIP has no weights ''"),
        ({"backbones.second_name": "timm/x"}, "timm/x needs the address of weights, not 'webli'"),
        ({"backbones.second_name": "ViT-Z"}, "no encoder 'ViT-Z'"),
        ({"features.second_layer": -13}, r"second encoder has 12 layers, features\.second_layer"),
        ({"features.layer": -13}, r"the encoder has 12 layers, features\.layer says -13"),
    ],
)
def test_two_encoders_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        preset("coco").override({**SIGLIP, **changes})


def test_two_encoders_may_have_any_square_grid() -> None:
    for patches in (49, 64, 196):
        grid = {"features.patches": patches, "pretrain.projector.tokens": patches}
        assert preset("coco").override({**SIGLIP, **grid}).features.patches == patches


def test_the_documented_recipe_is_valid() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    block = page.partition("## Two encoders")[2].partition("```sh\n")[2].partition("```")[0]
    changes = dict(word.split("=", 1) for word in block.split() if "=" in word)
    assert preset("coco").override(changes).backbones.kind == "hub"
    assert len(changes) == 7
