"""Addresses and branches of the Hugging Face Hub, and conversations that come from it."""

import json
import re
from pathlib import Path

import pytest

from pipeline.backbones.model_sources import find_source
from pipeline.data.conversations import conversations
from pipeline.data.probes import probe_conversations
from pipeline.engine.stage import StageContext
from pipeline.errors import PipelineError
from pipeline.hub.snapshots import Repository, commit_of, is_name, parse_address
from pipeline.publishing.licences import origins
from pipeline.recipe.backbone_parts import HubBackbones
from pipeline.recipe.data_sources import HubConversations
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from tests.support.fake_hub import FakeHub
from tests.support.fake_stages import Quiet
from tests.support.hub_fixtures import go_offline, lose_network, use_cache

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SET, FILE = "somebody/talks", "talks.json"


@pytest.mark.parametrize(
    ("address", "repository", "file"),
    [
        ("hf://owner/name", Repository("owner/name", "main"), ""),
        ("hf://owner/name@v1.0", Repository("owner/name", "v1.0"), ""),
        ("hf://models/owner/name", Repository("owner/name", "main"), ""),
        ("hf://owner/name@refs/pr/3", Repository("owner/name", "refs/pr/3"), ""),
        ("hf://owner/name@feature%2Fx", Repository("owner/name", "feature/x"), ""),
        ("hf://datasets/o/n/a/b.json", Repository("o/n", "main", "dataset"), "a/b.json"),
        ("hf://datasets/o/n@dev/b.json", Repository("o/n", "dev", "dataset"), "b.json"),
    ],
)
def test_an_address_names_a_repository_and_a_file(
    address: str, repository: Repository, file: str
) -> None:
    assert parse_address(address, "main") == (repository, file)


@pytest.mark.parametrize("address", ["hf://", "hf://name", "hf://a/b@", "hf://a b/c"])
def test_another_form_is_refused(address: str) -> None:
    with pytest.raises(PipelineError, match="names no repository"):
        parse_address(address, "main")


def test_a_path_is_told_from_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_source("owner/name", "dev") == Repository("owner/name", "dev")
    assert find_source("gpt2", "main") == Repository("gpt2", "main")
    assert find_source("s3://bucket/phi", "main") == "s3://bucket/phi"
    for text in ("./phi", "/models/phi", "a/b/c", "weights.safetensors", "sub/own.safetensors"):
        assert find_source(text, "main") == Path(text)
    assert find_source("file:///models/phi", "main") == Path("/models/phi")
    assert find_source("~/phi", "main") == Path("~/phi").expanduser()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert find_source("owner/name", "main") == Path("owner/name")
    for text in ("hf://datasets/owner/name", "hf://owner/name/model.safetensors"):
        with pytest.raises(PipelineError, match="not a model"):
            find_source(text, "main")


def test_a_branch_is_a_commit_of_the_hub_else_of_the_cache(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = fake_hub.publish(SET, {FILE: b"[]"})
    there = Repository(SET, "main", "dataset")
    assert commit_of(Repository(SET, COMMIT, "dataset")) == COMMIT
    assert not fake_hub.asked
    assert commit_of(there) == commit
    with pytest.raises(PipelineError, match="no such revision"):
        commit_of(Repository(SET, "dev", "dataset"))
    lose_network(monkeypatch)
    assert commit_of(there) is None
    reference = tmp_path / "cache" / "datasets--somebody--talks" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text(COMMIT)
    assert commit_of(there) == COMMIT
    go_offline(monkeypatch)
    assert commit_of(there) == COMMIT
    assert commit_of(Repository("somebody/else", "main", "dataset")) is None


def test_the_preset_of_real_models_names_commits() -> None:
    recipe = preset("coco")
    assert isinstance(recipe.backbones, HubBackbones)
    assert isinstance(recipe.conversations.source, HubConversations)
    for revision in (recipe.backbones.lm_revision, recipe.conversations.source.revision):
        assert re.fullmatch(r"[0-9a-f]{40}", revision)


def talks(text: str) -> bytes:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": text}]
    return json.dumps([{"id": "1", "image": "1.jpg", "conversations": turns}]).encode()


def read(folder: Path, recipe: Recipe) -> bytes:
    """Run the stage as a run does, and return its table."""
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir()
    context = StageContext(
        {},
        folder / "out",
        folder / "scratch",
        Settings(),
        Quiet(),
        source=probe_conversations(recipe),
    )
    conversations(context, recipe.conversations, seed=0)
    return (folder / "out" / "conversations.parquet").read_bytes()


@pytest.mark.parametrize("form", ["hub", "address"])
def test_conversations_of_a_branch_are_the_same_offline(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    source = {"kind": "file", "path": f"hf://datasets/{SET}/{FILE}", "sha256": None}
    if form == "hub":
        source = {"kind": "hub", "repository": SET, "filename": FILE, "revision": "main"}
    recipe = preset("coco").override({"conversations.source": source})
    commit = fake_hub.publish(SET, {FILE: talks("A cat.")})
    state = probe_conversations(recipe)
    assert state == {"conversations": {"commit": commit}}
    online = read(tmp_path / "online", recipe)
    with monkeypatch.context() as offline:
        go_offline(offline)
        assert probe_conversations(recipe) == state
        assert read(tmp_path / "offline", recipe) == online
        use_cache(offline, tmp_path / "empty")
        with pytest.raises(PipelineError, match=f"cannot fetch {FILE}.*HF_HUB_OFFLINE is set"):
            read(tmp_path / "nothing", recipe)
    fake_hub.publish(SET, {FILE: talks("A dog.")})
    assert probe_conversations(recipe) != state
    assert read(tmp_path / "moved", recipe) != online


def test_an_address_must_name_the_file_of_the_conversations(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    fake_hub.publish(SET, {FILE: b"[]"})
    source = {"kind": "file", "path": f"hf://datasets/{SET}", "sha256": None}
    with pytest.raises(
        PipelineError, match=r"names no file\n.*hf://datasets/owner/name/file\.json"
    ):
        read(tmp_path, preset("coco").override({"conversations.source": source}))


def test_the_card_names_a_model_of_the_hub_and_no_folder_of_ours() -> None:
    recipe = preset("coco").model_dump(mode="json")
    recipe["backbones"]["lm_repository"] = "hf://somebody/phi@main"
    assert origins(recipe)[-1].repository == "somebody/phi"
    for place in ("/home/somebody/phi", "s3://bucket/phi", "a/b/c"):
        recipe["backbones"] |= {"lm_repository": place, "clip_pretrained": f"{place}.safetensors"}
        encoder, model = origins(recipe)[-2:]
        assert not model.repository
        assert place not in encoder.what + model.what
    assert is_name("microsoft/phi-2")
    assert not is_name("../phi")
