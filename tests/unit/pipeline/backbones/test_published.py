"""The stage `backbones` with published models: from the Hub, its cache, folders and URLs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
import open_clip
import pytest
import torch

from model.encoder import PatchEncoder
from model.errors import ModelError
from model.language import load_language_model
from pipeline.engine.dag import BY_NAME
from pipeline.engine.plan import Step, plan
from pipeline.errors import PipelineError, UnreachableError
from pipeline.recipe.recipe import Recipe
from storage.errors import StorageError
from storage.store.artifacts import Artifact, ArtifactStore
from storage.store.verify import committed, verify
from tests.e2e.chat_server import ROOT
from tests.support.fake_hub import FakeHub
from tests.support.fake_stages import Quiet
from tests.support.hub_fixtures import TOKEN, go_offline, lose_network, use_cache
from tests.support.published_models import (
    BESIDE,
    CLIP,
    CLIP_REPOSITORY,
    clip_files,
    llama_files,
    make_backbones,
    phi_files,
    published,
    small_clip,
)

LM = "somebody/small-phi"


@pytest.fixture(scope="module", autouse=True)
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """CLIP's architecture is a small one, until the end of this file."""
    path = small_clip(tmp_path_factory.mktemp("clip"))
    open_clip.add_model_config(path)
    yield path
    open_clip.add_model_config(Path(open_clip.__file__).parent / "model_configs" / path.name)


@pytest.fixture
def hub(fake_hub: FakeHub) -> FakeHub:
    """A hub with both models."""
    fake_hub.publish(LM, phi_files())
    fake_hub.publish(CLIP_REPOSITORY, clip_files())
    return fake_hub


def shards() -> list[str]:
    return sorted(name for name in phi_files() if name.startswith("model-"))


def damaged(root: Path) -> bool:
    store = store_at(root)
    return bool(verify(store, committed(store), lambda amount: None))


def store_at(root: Path) -> ArtifactStore:
    return ArtifactStore(str(root / "store"), root / "work" / "cache")


def artifact_at(root: Path) -> Artifact:
    store = store_at(root)
    return store.artifact(store.manifests("backbones")[0])


def look(root: Path, recipe: Recipe) -> Step:
    return plan(recipe, store_at(root), (), [BY_NAME["backbones"]])[0]


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


# -- the Hub and its cache ----------------------------------------------------------------------


def test_models_come_from_the_hub_once_and_then_from_its_cache(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, commit = published(), hub.repositories[LM].head
    first = make_backbones(tmp_path / "first", recipe)
    summary, source = first.manifest.summary, first.manifest.payload["source"]
    assert (summary["lm_commit"], source["lm"]) == (commit, {"commit": commit})
    assert summary["clip_commit"] == hub.repositories[CLIP_REPOSITORY].head
    files = artifact_at(tmp_path / "first")
    kept = {name for name in phi_files() if name not in BESIDE}
    assert {name for name in files.names if name.startswith("lm/")} == {f"lm/{n}" for n in kept}
    assert not set(hub.fetched()) & {*BESIDE, "open_clip_pytorch_model.bin"}
    assert len(shards()) > 2
    model = load_language_model(files.directory("lm"))
    assert model.generation_config.eos_token_id == 0
    assert PatchEncoder(files.directory("clip"), -1).depth == 2
    # A second time nothing is fetched; a second store takes all of it from the cache.
    fetched = hub.fetched()
    assert make_backbones(tmp_path / "first", recipe).status == "cached"
    online = make_backbones(tmp_path / "online", recipe)
    assert hub.fetched() == fetched
    go_offline(monkeypatch)
    asked = len(hub.asked)
    offline = make_backbones(tmp_path / "offline", recipe)
    pinned = make_backbones(tmp_path / "pinned", published(lm_revision=commit))
    assert len(hub.asked) == asked
    assert online.manifest.digest == offline.manifest.digest == first.manifest.digest
    assert offline.manifest.fingerprint == first.manifest.fingerprint
    assert pinned.manifest.digest == first.manifest.digest
    assert "lm" not in pinned.manifest.payload["source"]


def test_a_moved_branch_is_seen_by_the_plan_and_a_missing_network_changes_nothing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = published()
    before = make_backbones(tmp_path, recipe)
    assert look(tmp_path, recipe).status == "fresh"
    with monkeypatch.context() as away:
        lose_network(away)
        assert look(tmp_path, recipe).status == "fresh"
        use_cache(away, tmp_path / "another machine")  # whose cache knows no branch
        assert look(tmp_path, recipe).status == "fresh"
        assert make_backbones(tmp_path, recipe).status == "cached"
        step = look(tmp_path, published(lm_revision="dev"))
        assert step.reason.startswith("field `backbones.lm_revision` main → dev")
        assert "source `lm` cannot be checked now" in step.reason
    moved = hub.publish(LM, phi_files(seed=7))
    assert look(tmp_path, recipe).reason == "source `lm` changed"
    after = make_backbones(tmp_path, recipe)
    assert after.manifest.summary["lm_commit"] == moved
    assert after.manifest.digest != before.manifest.digest


def test_what_was_looked_at_is_what_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = hub.repositories[LM].head
    from pipeline.backbones import published as published_backbones

    fetch = published_backbones.fetch_backbones

    def moved_meanwhile(*arguments: object) -> object:
        hub.publish(LM, phi_files(seed=8))
        return fetch(*arguments)  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(published_backbones, "fetch_backbones", moved_meanwhile)
    made = make_backbones(tmp_path, published())
    assert made.manifest.summary["lm_commit"] == known
    assert made.manifest.payload["source"]["lm"] == {"commit": known}


def process(root: Path, config: Path, **environment: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    command = [sys.executable, "-m", "tests.support.published_models", str(root), str(config)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**clean, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_kill_costs_the_file_that_was_not_whole_and_then_no_network_is_needed(
    hub: FakeHub, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = {"HF_HOME": str(tmp_path / "home")}
    hub.hold = shards()[0]
    killed = process(tmp_path / "one", config, HF_ENDPOINT=hub.url, **home)
    assert hub.halfway.wait(timeout=240), killed.communicate(timeout=1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not store_at(tmp_path / "one").manifests("backbones")
    hub.hold, before = "", hub.fetched()
    use_cache(monkeypatch, tmp_path / "home" / "hub")
    made = make_backbones(tmp_path / "one", published())
    again = set(hub.fetched()[len(before) :])
    assert shards()[0] in again
    assert not again & {"config.json", "tokenizer.json", "open_clip_model.safetensors"}
    # As on a machine without a network, to which HF_HOME was copied.
    alone = process(tmp_path / "two", config, HF_HUB_OFFLINE="1", **home)
    told, wrong = alone.communicate(timeout=240)
    assert told.split() == ["made", made.manifest.digest], wrong


def test_an_empty_cache_without_a_network_is_told_with_the_remedy(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "cache")
    with monkeypatch.context() as offline:
        go_offline(offline)
        with pytest.raises(PipelineError) as told:
            make_backbones(tmp_path, published())
    line, remedy = str(told.value).splitlines()
    assert "HF_HUB_OFFLINE is set" in line
    assert cache in line
    assert "HF_HOME" in remedy
    assert f"hf download {CLIP_REPOSITORY}" in remedy
    lose_network(monkeypatch)
    with pytest.raises(UnreachableError, match="check the network"):
        make_backbones(tmp_path, published())


def test_a_cache_without_a_shard_is_not_taken_for_whole(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_backbones(tmp_path / "first", published())
    snapshot = tmp_path / "cache" / f"models--{LM.replace('/', '--')}" / "snapshots"
    next(snapshot.rglob(shards()[1])).unlink()
    go_offline(monkeypatch)
    with pytest.raises(PipelineError, match=shards()[1]):
        make_backbones(tmp_path / "second", published())


@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_a_gated_repository_names_the_token_and_the_licence(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    hub.publish(LM, phi_files(), access="gated")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PipelineError) as told:
        make_backbones(tmp_path, published())
    assert not isinstance(told.value, UnreachableError)
    line, remedy = str(told.value).splitlines()
    assert f"cannot fetch {LM}" in line
    assert "gated" in line
    assert "HF_TOKEN" in remedy
    assert f"accept the licence at {hub.url}/{LM}" in remedy
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert make_backbones(tmp_path, published()).status == "made"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lm_repository": "somebody/else"}, "no such repository.*\n.*check the name"),
        ({"lm_revision": "0" * 40}, "no such revision.*\n.*check the revision"),
        ({"lm_repository": f"hf://{LM}@nowhere"}, "no such revision"),
        ({"lm_repository": "hf://nobody"}, "names no repository"),
    ],
)
def test_a_wrong_name_or_revision_is_one_line(
    hub: FakeHub, tmp_path: Path, changes: Mapping[str, str], words: str
) -> None:
    with pytest.raises(PipelineError, match=words) as told:
        make_backbones(tmp_path, published(**changes))
    assert len(str(told.value).splitlines()) == 2


def test_pickles_are_refused_with_the_reason(hub: FakeHub, tmp_path: Path) -> None:
    files = {n: data for n, data in phi_files().items() if "safetensors" not in n}
    hub.publish(LM, files)
    with pytest.raises(PipelineError, match=r"only as pytorch_model\.bin, a pickle, which could"):
        make_backbones(tmp_path, published())
    clip = {n: data for n, data in clip_files().items() if "safetensors" not in n}
    hub.publish(CLIP_REPOSITORY, clip)
    with pytest.raises(PipelineError, match=r"only as open_clip_pytorch_model\.bin, a pickle"):
        make_backbones(tmp_path, published())
    assert not [name for name in hub.fetched() if name.endswith(".bin")]


def test_a_repositorys_code_is_neither_fetched_nor_run(hub: FakeHub, tmp_path: Path) -> None:
    maps = {"AutoConfig": "modeling_small.SmallConfig", "AutoModelForCausalLM": "modeling_small.S"}
    config = json.loads(phi_files()["config.json"]) | {"auto_map": maps}
    hub.publish(LM, {**phi_files(), "config.json": json.dumps(config).encode()})
    make_backbones(tmp_path, published())
    load_language_model(artifact_at(tmp_path).directory("lm"))
    unknown = json.dumps(config | {"model_type": "small"}).encode()
    hub.publish(LM, {**phi_files(), "config.json": unknown})
    fetched = len(hub.fetched())
    with pytest.raises(ModelError, match=f"{LM} at .* needs code of its own, which is never run"):
        make_backbones(tmp_path, published())
    names = hub.fetched()[fetched:]
    assert "config.json" in names
    assert not [name for name in names if name.endswith((".py", ".safetensors"))]


# -- folders and URLs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme", ["", "file://", "memory://", "hf://", pytest.param("s3://", marks=pytest.mark.s3)]
)
def test_a_model_gives_the_same_artifact_from_every_place(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    scheme: str,
) -> None:
    made = make_backbones(tmp_path / "hub", published())
    report = Quiet()
    if scheme == "hf://":
        lm, clip = f"hf://{LM}@{hub.repositories[LM].head}", f"hf://{CLIP_REPOSITORY}"
    elif scheme in ("memory://", "s3://"):
        if scheme == "s3://":
            request.getfixturevalue("s3_server")
        lm, clip = f"{scheme}models/phi", f"{scheme}models/clip"
        remote = fsspec.filesystem(scheme.removesuffix("://"))
        remote.makedirs("models", exist_ok=True)  # the bucket
        for folder, files in ((lm, phi_files()), (clip, clip_files())):
            for name, data in files.items():
                remote.pipe_file(f"{folder}/{name}", data)
    else:
        lm = f"{scheme}{write_folder(tmp_path / 'phi', phi_files())}"
        clip = f"{scheme}{write_folder(tmp_path / 'clip', clip_files())}"
    if scheme != "hf://":
        go_offline(monkeypatch)
    recipe = published(lm_repository=lm, clip_pretrained=clip)
    other = make_backbones(tmp_path / "other", recipe, report)
    assert other.manifest.digest == made.manifest.digest
    assert any("phi" in line for line in report.said)
    assert look(tmp_path / "other", recipe).status == "fresh"


def test_a_changed_folder_is_noticed_and_never_alters_what_was_made(
    hub: FakeHub, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "phi", phi_files())
    recipe = published(lm_repository=str(folder))
    made = make_backbones(tmp_path, recipe)
    with (folder / shards()[0]).open("r+b") as stream:  # as somebody who trains into their folder
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\1\2\3\4")
    assert (folder / shards()[0]).stat().st_nlink == 1
    assert not damaged(tmp_path)
    assert look(tmp_path, recipe).reason == "source `lm` changed"
    assert make_backbones(tmp_path, recipe).manifest.digest != made.manifest.digest


def test_a_chat_template_comes_along(hub: FakeHub, tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "phi", {**phi_files(), "chat_template.jinja": b"{{ messages }}"}
    )
    make_backbones(tmp_path, published(lm_repository=str(folder)))
    kept = artifact_at(tmp_path).path("lm/chat_template.jinja")
    assert kept.read_bytes() == b"{{ messages }}"


@pytest.mark.parametrize("place", ["", "memory://"])
def test_one_file_of_encoder_weights_is_enough(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    made = make_backbones(tmp_path / "hub", published())
    data = clip_files()["open_clip_model.safetensors"]
    path = f"{place}{tmp_path}/own.safetensors"
    with fsspec.open(path, "wb") as stream:
        stream.write(data)
    other = make_backbones(tmp_path / "other", published(clip_pretrained=path))
    assert other.manifest.digest == made.manifest.digest


def test_a_second_encoder_lies_beside_the_first_and_is_watched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = make_backbones(tmp_path / "alone", published())
    clip = write_folder(tmp_path / "clip", clip_files())
    own = tmp_path / "own.safetensors"
    own.write_bytes(clip_files()["open_clip_model.safetensors"])
    for number, place in enumerate((f"hf://{CLIP_REPOSITORY}", str(clip), str(own))):
        recipe = published(second_name=CLIP, second_pretrained=place)
        root = tmp_path / f"two-{number}"
        made = make_backbones(root, recipe)
        files = artifact_at(root)
        assert PatchEncoder(files.directory("second"), -1).fingerprint == (
            PatchEncoder(files.directory("clip"), -1).fingerprint
        )
        summary, source = made.manifest.summary, made.manifest.payload["source"]
        assert summary["second_parameters"] == alone.manifest.summary["clip_parameters"]
        assert set(source) == {"clip", "second", "lm"}
        assert ("second_commit" in summary) is place.startswith("hf:")
        rest = {name for name in files.names if not name.startswith("second/")}
        assert rest == set(artifact_at(tmp_path / "alone").names)
    assert look(root, recipe).status == "fresh"
    own.write_bytes(own.read_bytes() + b" ")
    assert look(root, recipe).status == "stale"
    wrong = published(second_name=CLIP, second_pretrained=str(tmp_path / "none.safetensors"))
    go_offline(monkeypatch)
    with pytest.raises((PipelineError, StorageError), match=r"none\.safetensors"):
        make_backbones(tmp_path / "wrong", wrong)


def test_tied_weights_in_one_file_are_kept_as_they_are(hub: FakeHub, tmp_path: Path) -> None:
    hub.publish("somebody/llama", llama_files())
    make_backbones(tmp_path, published(lm_repository="somebody/llama"))
    model = load_language_model(artifact_at(tmp_path).directory("lm"))
    embedding = model.get_input_embeddings().weight  # ty: ignore[unresolved-attribute]
    assert torch.equal(model.get_submodule("lm_head").get_parameter("weight"), embedding)
    assert not torch.equal(embedding, torch.zeros_like(embedding))


INDEX = "model.safetensors.index.json"
OUTSIDE = b'{"weight_map": {"a": "../../secret.safetensors"}}'


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("first", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS.*\n.*pull"),
        ("first", b"\x08\0\0\0\0\0\0\0{", "not a complete safetensors file"),
        ("first", None, "incomplete: .* lists model-00001-of-.*, which is missing"),
        ("config.json", b"<html>", "config.json .* is not a JSON object"),
        ("config.json", None, "has no config.json"),
        (INDEX, None, "only as pytorch_model.bin"),
        (INDEX, OUTSIDE, "lists ../../secret"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    hub: FakeHub, tmp_path: Path, name: str, data: bytes | None, words: str
) -> None:
    name = shards()[0] if name == "first" else name
    files = {key: value for key, value in phi_files().items() if key != name}
    folder = write_folder(tmp_path / "phi", files | ({name: data} if data is not None else {}))
    with pytest.raises(PipelineError, match=words):
        make_backbones(tmp_path, published(lm_repository=str(folder)))


def test_a_place_that_is_not_there_is_named(hub: FakeHub, tmp_path: Path) -> None:
    for missing in (f"{tmp_path}/nope", "memory://nowhere/phi"):
        with pytest.raises((PipelineError, StorageError), match=missing):
            make_backbones(tmp_path, published(lm_repository=missing))


def test_an_encoder_of_another_activation_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    config = json.loads(clip_files()["open_clip_config.json"])
    config["model_cfg"]["quick_gelu"] = False
    changed = {**clip_files(), "open_clip_config.json": json.dumps(config).encode()}
    folder = write_folder(tmp_path / "clip", changed)
    with pytest.raises(ModelError, match=f"without QuickGELU, unlike a model '{CLIP}'"):
        make_backbones(tmp_path, published(clip_pretrained=str(folder)))


def test_images_are_normalised_as_the_config_beside_the_weights_says(
    hub: FakeHub, tmp_path: Path
) -> None:
    config = json.loads(clip_files()["open_clip_config.json"])
    config["preprocess_cfg"] |= {"mean": [0.5, 0.5, 0.5], "resize_mode": "squash"}
    changed = {**clip_files(), "open_clip_config.json": json.dumps(config).encode()}
    folder = write_folder(tmp_path / "clip", changed)
    make_backbones(tmp_path, published(clip_pretrained=str(folder)))
    kept = json.loads(artifact_at(tmp_path).path("clip/open_clip_config.json").read_text())
    assert kept["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert kept["preprocess_cfg"]["resize_mode"] == "squash"


# -- one file with two names --------------------------------------------------------------------


def test_large_files_are_not_written_twice_and_are_sealed(hub: FakeHub, tmp_path: Path) -> None:
    made = make_backbones(tmp_path, published())
    blobs = tmp_path / "cache" / f"models--{LM.replace('/', '--')}" / "blobs"
    kept = Path(made.manifest.folder)
    for shard in shards():
        path = tmp_path / "store" / kept / "lm" / shard
        if path.stat().st_nlink > 1:  # else this disk has reflinks
            assert path.stat().st_mode & 0o222 == 0
            assert path.stat().st_ino in {blob.stat().st_ino for blob in blobs.iterdir()}
    config = tmp_path / "store" / kept / "lm" / "config.json"
    assert config.stat().st_nlink == 1


def test_a_cache_that_was_written_to_is_neither_served_nor_taken_again(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_backbones(tmp_path, published())
    snapshots = tmp_path / "cache" / f"models--{LM.replace('/', '--')}" / "snapshots"
    blob = next(snapshots.rglob(shards()[0])).resolve()
    blob.chmod(0o644)  # somebody who insists
    with blob.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\1\2\3\4")
    go_offline(monkeypatch)
    with pytest.raises(PipelineError, match="was altered: its content does not match"):
        make_backbones(tmp_path / "second", published())
    shared = blob.stat().st_nlink > 1  # else this disk has reflinks
    assert damaged(tmp_path) is shared
    if shared:
        with pytest.raises(PipelineError, match=f"{blob}.*was altered"):
            make_backbones(tmp_path, published())
    blob.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert make_backbones(tmp_path, published()).manifest.digest == made.manifest.digest
