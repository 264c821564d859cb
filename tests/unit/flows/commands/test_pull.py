"""`phivision pull`: whole and verified, or not there."""

import hashlib
import json
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest
from open_clip import get_model_config

from flows.commands.assistant import open_assistant
from flows.commands.export import export_to
from flows.commands.pull import pull_to
from pipeline.errors import PipelineError, UnreachableError
from pipeline.hub.checksums import SUMS
from pipeline.hub.pull import pull
from pipeline.settings import Settings
from pipeline.training.start import fields_of_bundle
from storage.store.artifacts import ArtifactStore
from storage.store.leases import try_lock
from tests.support.fake_hub import FakeHub
from tests.support.hub_commands import run, start
from tests.support.hub_fixtures import go_offline, lose_network
from tests.support.tiny_bundle import image, publish_tiny

ADDRESS = "hf://ada/model"
WEIGHTS = "lm/model.safetensors"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("pulled")
    settings = Settings(store=str(root / "store"), device="cpu")
    publish_tiny(ArtifactStore(settings.store, settings.work / "cache"), root / "made")
    return settings


@pytest.fixture(scope="module")
def exported(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("exported") / "out"
    export_to(settings, str(folder), "merged", 0, public=False)
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def listed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return files with a list that fits them."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    return {**files, SUMS: "".join(lines).encode()}


def test_a_pulled_bundle_is_the_exported_one_and_answers(
    fake_hub: FakeHub, exported: dict[str, bytes], settings: Settings, tmp_path: Path
) -> None:
    fake_hub.publish("ada/model", {**exported, ".gitattributes": b"*"})
    told = pull_to(ADDRESS, tmp_path / "mine")
    assert content(tmp_path / "mine") == exported
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["mine"]
    assert "verified by SHA-256" in told
    assert "not fetched" not in told
    photo, question = image(), "What colour?"
    here = open_assistant(settings, str(tmp_path / "mine")).ask(photo, question)
    assert here == open_assistant(settings, None).ask(photo, question)
    fetched = len(fake_hub.fetched())
    assert "holds already" in pull_to(ADDRESS, tmp_path / "mine")
    assert fake_hub.fetched()[fetched:].count(WEIGHTS) == 0


def test_training_continues_from_a_pulled_bundle(
    fake_hub: FakeHub, exported: dict[str, bytes], tmp_path: Path
) -> None:
    tower = get_model_config("ViT-B-32")
    named = json.dumps({"model_cfg": tower, "preprocess_cfg": {}}).encode()
    config = "clip/open_clip_config.json"
    files = {name: data for name, data in exported.items() if name != SUMS}
    fake_hub.publish("ada/model", listed({**files, config: named}))
    pull(ADDRESS, tmp_path / "mine")
    fields = fields_of_bundle(str(tmp_path / "mine"))
    assert fields["backbones.clip_name"] == "ViT-B-32"
    assert fields["pretrain.start"] == str(tmp_path / "mine")
    assert fields["backbones.lm_repository"] == str(tmp_path / "mine" / "lm")


def test_a_revision_is_that_one(
    fake_hub: FakeHub, exported: dict[str, bytes], tmp_path: Path
) -> None:
    first = fake_hub.publish("ada/model", exported)
    fake_hub.repositories["ada/model"].tags["3fa91c02be"] = first
    fake_hub.publish("ada/model", listed({"bundle.json": b"{}"}))
    pull(f"{ADDRESS}@3fa91c02be", tmp_path / "old")
    assert content(tmp_path / "old") == exported
    pull(ADDRESS, tmp_path / "new")
    assert set(content(tmp_path / "new")) == {"bundle.json", SUMS}
    with pytest.raises(PipelineError, match="no such revision"):
        pull(f"{ADDRESS}@nothing", tmp_path / "none")
    with pytest.raises(PipelineError, match="is not empty and differs from"):
        pull(f"{ADDRESS}@3fa91c02be", tmp_path / "new")


def test_an_edited_card_is_no_damage(
    fake_hub: FakeHub, exported: dict[str, bytes], tmp_path: Path
) -> None:
    fake_hub.publish("ada/model", {**exported, "README.md": b"# Edited on the Hub"})
    pull(ADDRESS, tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_bytes() == b"# Edited on the Hub"


def test_other_files_of_the_repository_are_named_and_left_out(
    fake_hub: FakeHub, exported: dict[str, bytes], tmp_path: Path
) -> None:
    fake_hub.publish("ada/model", {**exported, "modeling.py": b"print()", "pytorch.bin": b"x"})
    told = pull_to(ADDRESS, tmp_path / "mine")
    assert "not fetched, since SHA256SUMS does not name it: modeling.py, pytorch.bin" in told
    assert content(tmp_path / "mine") == exported
    assert not {"modeling.py", "pytorch.bin"} & {*fake_hub.fetched()}


def test_a_file_that_differs_from_the_list_never_becomes_visible(
    fake_hub: FakeHub, exported: dict[str, bytes], tmp_path: Path
) -> None:
    altered = exported[WEIGHTS][:-1] + bytes([exported[WEIGHTS][-1] ^ 1])
    fake_hub.publish("ada/model", {**exported, WEIGHTS: altered})
    for _ in range(2):
        with pytest.raises(UnreachableError, match=rf"{WEIGHTS} of .* do not have the SHA-256"):
            pull(ADDRESS, tmp_path / "mine")
        assert not (tmp_path / "mine").exists()
    assert fake_hub.fetched().count(WEIGHTS) == 2
    assert fake_hub.fetched().count("clip/open_clip_config.json") <= 2


def test_a_repository_without_all_its_files_is_refused_before_any_download(
    fake_hub: FakeHub, exported: dict[str, bytes], tmp_path: Path
) -> None:
    fake_hub.publish("ada/model", {n: d for n, d in exported.items() if n != WEIGHTS})
    with pytest.raises(PipelineError, match=rf"lacks {WEIGHTS}, which SHA256SUMS lists"):
        pull(ADDRESS, tmp_path / "mine")
    fake_hub.publish("ada/model", {n: d for n, d in exported.items() if n != SUMS})
    with pytest.raises(PipelineError, match=r"has no SHA256SUMS"):
        pull(ADDRESS, tmp_path / "mine")
    assert fake_hub.fetched() in ([], [SUMS], [SUMS] * 2)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}  ../../evil.json", r"path leaves its folder"),
        ("{}  /etc/evil.json", "absolute path"),
        ("{}  modeling_phi.py", "neither weights"),
        ("{}  pytorch_model.bin", "neither weights"),
        ("nothing  bundle.json", "line 1 of SHA256SUMS .* is not a SHA-256"),
    ],
)
def test_a_list_that_names_what_does_not_belong_there_is_refused(
    fake_hub: FakeHub, tmp_path: Path, line: str, words: str
) -> None:
    text = line.format("0" * 64).encode()
    fake_hub.publish("ada/model", {SUMS: text, "bundle.json": b"{}"})
    with pytest.raises(PipelineError, match=words):
        pull(ADDRESS, tmp_path / "sub" / "mine")
    assert not list(tmp_path.rglob("evil*"))
    assert not list((tmp_path / "sub").iterdir())


def test_a_folder_with_other_files_is_left_alone(
    fake_hub: FakeHub, exported: dict[str, bytes], tmp_path: Path
) -> None:
    fake_hub.publish("ada/model", exported)
    pull(ADDRESS, tmp_path / "mine")
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    (tmp_path / "mine" / WEIGHTS).write_bytes(b"damaged")
    (tmp_path / "mine" / "bundle.json").unlink()
    with pytest.raises(PipelineError) as caught:
        pull(ADDRESS, tmp_path / "mine")
    for words in (f"{WEIGHTS} (altered)", "bundle.json (missing)", "notes.txt (not in SHA256SUMS)"):
        assert words in str(caught.value)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(PipelineError, match="is a file"):
        pull(ADDRESS, tmp_path / "mine" / "notes.txt")


def test_two_pulls_into_one_folder_do_not_mix(
    fake_hub: FakeHub, exported: dict[str, bytes], tmp_path: Path
) -> None:
    commit = fake_hub.publish("ada/model", exported)
    with (
        try_lock(tmp_path / f".mine.{commit[:16]}.lock"),
        pytest.raises(PipelineError, match="another process fetches"),
    ):
        pull(ADDRESS, tmp_path / "mine")
    pull(ADDRESS, tmp_path / "mine")
    assert content(tmp_path / "mine") == exported


def test_a_full_disk_is_told_before_the_download(
    fake_hub: FakeHub, exported: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.publish("ada/model", exported)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**30, 2**30, 2**10))
    with pytest.raises(PipelineError, match=r"needs \d+ MB, and .* has 0 MB"):
        pull(ADDRESS, tmp_path / "mine")
    assert WEIGHTS not in fake_hub.fetched()


def test_no_hub_no_name_and_no_rights_are_told(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PipelineError, match="write hf://owner/name"):
        pull("ada/model", tmp_path / "mine")
    with pytest.raises(PipelineError, match="names no repository of a model"):
        pull("hf://datasets/ada/set", tmp_path / "mine")
    fake_hub.publish("ada/model", {}, access="private")
    with pytest.raises(PipelineError, match="HF_TOKEN"):
        pull(ADDRESS, tmp_path / "mine")
    with monkeypatch.context() as away:
        lose_network(away)
        with pytest.raises(UnreachableError, match="check the network"):
            pull(ADDRESS, tmp_path / "mine")
    go_offline(monkeypatch)
    with pytest.raises(PipelineError, match="HF_HUB_OFFLINE"):
        pull(ADDRESS, tmp_path / "mine")


def test_a_killed_pull_shows_nothing_and_goes_on_where_it_stopped(
    exported: dict[str, bytes], tmp_path: Path
) -> None:
    large = bytes(range(256)) * (24 * 2**12)  # 24 MB: more than one piece of a download
    files = listed({**{n: d for n, d in exported.items() if n != SUMS}, "lm/w.safetensors": large})
    pulling = ["flows.cli", "pull", ADDRESS, str(tmp_path / "mine")]
    with FakeHub("hf_of_nobody") as hub:
        hub.publish("ada/model", files)
        hub.hold = "lm/w.safetensors"
        with start(tmp_path, hub.url, *pulling, token="") as broken:
            assert hub.halfway.wait(120)
            partial = wait_for_bytes(tmp_path)
            broken.kill()
        assert not (tmp_path / "mine").exists()
        hub.hold, before = "", len(hub.ranges)
        done = run(tmp_path, hub.url, *pulling, token="")
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "mine") == files
    again = dict(hub.ranges[before:])
    assert int(again["lm/w.safetensors"].removeprefix("bytes=").rstrip("-")) >= partial > 0
    assert not {*again} & {"bundle.json", "clip/open_clip_config.json"}  # they were there already
    assert [path.name for path in tmp_path.glob(".*")] == []


def wait_for_bytes(folder: Path) -> int:
    """Return the size of the unfinished file, once some of it is on the disk."""
    for _ in range(600):
        sizes = [path.stat().st_size for path in folder.glob(".*/lm/*.part")]
        if sum(sizes) > 0:
            return sum(sizes)
        time.sleep(0.05)
    raise AssertionError("nothing of the held file reached the disk")
