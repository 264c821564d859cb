"""Exported repositories: complete, loadable, honest about what they are made of."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.commands.export import export_to, hub_name, hub_token
from model.assistant import load_assistant
from model.projectors import Mlp2xGeluConfig
from pipeline.errors import PipelineError
from pipeline.publishing.export import trace, write_repository
from pipeline.publishing.licences import origins
from pipeline.recipe.presets import PRESETS, preset
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from tests.support.tiny_bundle import image, publish_tiny

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("exported")
    settings = Settings(store=str(root / "store"), device="cpu")
    publish_tiny(ArtifactStore(settings.store, settings.work / "cache"), root / "made")
    return settings


@pytest.fixture(scope="module")
def repositories(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("repositories")
    export_to(settings, str(root / "merged"), "merged", 0, public=False)
    export_to(settings, str(root / "beside"), "beside", 0, public=False)
    return {name: root / name for name in ("merged", "beside")}


@torch.no_grad()
@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft
def test_every_way_to_load_gives_equal_logits(
    settings: Settings, repositories: dict[str, Path]
) -> None:
    from flows.commands.assistant import open_assistant

    published = open_assistant(settings, None)
    embeddings = published.vlm.embed_images(published.see(image()).unsqueeze(0)).tokens
    expected = published.vlm.language_model(inputs_embeds=embeddings).logits
    for folder in repositories.values():
        loaded = load_assistant(folder)
        again = loaded.vlm.embed_images(loaded.see(image()).unsqueeze(0)).tokens
        assert torch.equal(loaded.vlm.language_model(inputs_embeds=again).logits, expected)
        assert loaded.ask(image(), "What colour?") == published.ask(image(), "What colour?")
    plain = AutoModelForCausalLM.from_pretrained(repositories["merged"], subfolder="lm").eval()
    assert torch.equal(plain(inputs_embeds=embeddings).logits, expected)
    base = AutoModelForCausalLM.from_pretrained(repositories["beside"], subfolder="lm").eval()
    assert not torch.allclose(base(inputs_embeds=embeddings).logits, expected, atol=1e-2)
    adapted = PeftModel.from_pretrained(base, str(repositories["beside"]), subfolder="adapter")
    torch.testing.assert_close(adapted(inputs_embeds=embeddings).logits, expected)


def test_the_tokenizer_is_transformers_own(repositories: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(repositories["merged"], subfolder="lm")
    assert tokenizer.decode(tokenizer("What colour is it?").input_ids) == "What colour is it?"


def test_the_card_tells_data_recipe_digests_scores_licences_and_limits(
    repositories: dict[str, Path],
) -> None:
    card = ModelCard.load(repositories["merged"] / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-text-to-text"
    for words in ("0.500 [0.400, 0.600]", "Limits", "Data and licences", "load_assistant"):
        assert words in card.text
    provenance = json.loads((repositories["merged"] / "provenance.json").read_text())
    assert set(provenance["stages"]) == {"backbones", "finetune", "publish"}
    for made in provenance["stages"].values():
        assert made["digest"][:16] in card.text
        assert made["fingerprint"][:16] in card.text
    assert "finetune.method = lora" in card.text
    assert "adapter" not in card.text
    assert "peft" in (repositories["beside"] / "README.md").read_text()


def test_a_card_says_what_to_install_and_names_the_repository_where_it_is_known(
    settings: Settings, repositories: dict[str, Path], tmp_path: Path
) -> None:
    unnamed = (repositories["merged"] / "README.md").read_text()
    assert 'load_assistant("hf://OWNER/NAME")' in unnamed
    assert "pip install" in unnamed
    store = ArtifactStore(settings.store, settings.work / "cache")
    lineage = trace(store, store.manifests("publish")[0])
    for adapters in ("merged", "beside"):
        folder = tmp_path / adapters
        folder.mkdir()
        write_repository(lineage, folder, adapters, "ada/model")
        text = (folder / "README.md").read_text()
        assert 'load_assistant("hf://ada/model")' in text
        assert "OWNER/NAME" not in text


def test_a_two_layer_projector_answers_the_same_without_any_code_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(store=str(tmp_path / "store"), device="cpu")
    store = ArtifactStore(settings.store, settings.work / "cache")
    publish_tiny(store, tmp_path / "made", projector=Mlp2xGeluConfig())
    export_to(settings, str(tmp_path / "out"), "merged", 0, public=False)
    (tmp_path / "photo.jpg").write_bytes(image())
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    _, *snippets = re.findall(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)
    code = "".join(snippets).replace('snapshot_download("OWNER/NAME")', '"out"')
    code = code.replace('"OWNER/NAME"', '"out"')
    assert "phivision" not in code
    assert "from model" not in code
    exec(compile(code, "card", "exec"), {})
    expected = load_assistant("out").ask(image(), "What is in the image?")
    assert capsys.readouterr().out.strip() == expected


def test_other_projectors_promise_no_such_thing(repositories: dict[str, Path]) -> None:
    assert "without phivision" not in (repositories["merged"] / "README.md").read_text()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_failure_midway_leaves_nothing_and_the_next_try_works(
    tmp_path: Path, is_there: bool
) -> None:
    settings = Settings(store=str(tmp_path / "store"), device="cpu")
    store = ArtifactStore(settings.store, settings.work / "cache")
    publish_tiny(store, tmp_path / "made")
    target = tmp_path / "exports" / "out"
    if is_there:
        target.mkdir(parents=True)
    weights = Path(store.artifact(store.manifests("publish")[0]).path("lm/model.safetensors"))
    weights.rename(tmp_path / "away")
    with pytest.raises(StorageError):
        export_to(settings, str(target), "merged", 0, public=False)
    assert [path.name for path in (tmp_path / "exports").rglob("*")] == ["out"] * is_there
    (tmp_path / "away").rename(weights)
    export_to(settings, str(target), "merged", 0, public=False)
    assert load_assistant(target).ask(image(), "What?")
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["out"]


def test_nothing_in_a_repository_is_code_or_a_pickle(repositories: dict[str, Path]) -> None:
    files = {p.name: p for f in repositories.values() for p in f.rglob("*") if p.is_file()}
    del files["SHA256SUMS"]
    assert {path.suffix for path in files.values()} <= {".json", ".safetensors", ".md"}


def test_sha256sum_checks_a_repository(repositories: dict[str, Path]) -> None:
    for folder in repositories.values():
        check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
        done = subprocess.run(check, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "lm/model.safetensors: OK" in done.stdout


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_folders_of_this_machine_are_left_out(
    settings: Settings, tmp_path: Path, scheme: str
) -> None:
    store = ArtifactStore(settings.store, settings.work / "cache")
    lineage = trace(store, store.manifests("publish")[0])
    recipe = lineage.manifests["backbones"].payload["recipe"]
    recipe["images"]["source"] = {
        "kind": "folder",
        "root": f"{scheme}/home/somebody/private/images",
    }
    recipe["conversations"] = {
        "source": {"kind": "file", "path": f"{scheme}/home/somebody/talk.json"}
    }
    recipe["backbones"]["clip_pretrained"] = "/home/somebody/clip.safetensors"
    write_repository(lineage, tmp_path / "out", "merged")
    for path in (tmp_path / "out").glob("*.*"):
        assert b"/home/somebody" not in path.read_bytes()
    shown = json.loads((tmp_path / "out" / "provenance.json").read_text())["recipe"]
    assert shown["images"]["source"]["root"] == "images"
    assert shown["backbones"]["clip_pretrained"] == "clip.safetensors"
    assert "to be stated by the model's author" in (tmp_path / "out" / "README.md").read_text()


def test_a_whole_finetuning_has_no_adapters_to_put_beside(tmp_path: Path) -> None:
    settings = Settings(store=str(tmp_path / "store"), device="cpu")
    store = ArtifactStore(settings.store, settings.work / "cache")
    publish_tiny(store, tmp_path / "made", method="full")
    with pytest.raises(PipelineError, match="no adapters"):
        export_to(settings, str(tmp_path / "out"), "beside", 0, public=False)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(PipelineError, match="not empty"):
        export_to(settings, str(tmp_path), "merged", 0, public=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_upload_needs_a_token_in_the_environment(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "token").write_text("hf_saved_by_somebody")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(PipelineError, match="HF_TOKEN is not set"):
        export_to(settings, "hf://owner/name", "merged", 0, public=False)
    monkeypatch.setenv("HF_TOKEN", " hf_abc ")
    assert hub_token() == "hf_abc"


@pytest.mark.parametrize("target", ["hf://", "hf://name", "hf://a/b/c", "hf://a/../b", "hf:///b"])
def test_a_target_that_names_no_repository_is_refused(target: str) -> None:
    with pytest.raises(PipelineError, match="is not a repository"):
        hub_name(target)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_presets_data_and_weights_have_a_licence(name: str) -> None:
    found = origins(preset(name).model_dump(mode="json"))
    spoken = [] if name == "photos" else ["conversations"]
    assert [o.part for o in found] == ["images", *spoken, "encoder", "language model"]
    assert all(origin.licence and origin.what for origin in found)
    assert all(origin.is_ours for origin in found) == (name == "demo")
