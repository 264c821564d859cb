"""Uploading to a hub that speaks the hub's own protocol, in a process that nothing holds back."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.commands.assistant import open_assistant
from flows.commands.export import captions_inside
from model.bundle import BUNDLE
from model.caption_consensus import CAPTIONS
from pipeline.hub.checksums import SUMS
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.published import read_history
from tests.support.fake_hub import FakeHub
from tests.support.hub_commands import TOKEN, run, start
from tests.support.tiny_bundle import image, publish_tiny

ADDRESS = "hf://somebody/my-model"
ASK = """import sys
from pathlib import Path
from model.assistant import load_assistant

print(load_assistant(sys.argv[1]).ask(Path(sys.argv[2]).read_bytes(), "What colour?"))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uploaded")
    settings = Settings(store=str(root / "store"), device="cpu")
    publish_tiny(ArtifactStore(settings.store, settings.work / "cache"), root / "made")
    return root / "store"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(TOKEN) as hub:
        yield hub


def test_an_export_is_private_whole_and_comes_back_equal(
    store: Path, hub: FakeHub, tmp_path: Path
) -> None:
    export = ["flows.cli", "export", ADDRESS, "--store", str(store)]
    done = run(tmp_path, hub.url, *export)
    assert done.returncode == 0, done.stderr
    [name] = [entry.run for entry in read_history(ArtifactStore(str(store), tmp_path / "cache"))]
    told = f"{hub.url}/somebody/my-model\nthis revision is {ADDRESS}@{name}"
    assert done.stdout.strip() == told
    made = hub.repositories["somebody/my-model"]
    assert made.made["visibility"] == "private"
    assert {BUNDLE, "README.md", "provenance.json", "lm/model.safetensors"} <= set(made.files)
    kinds = {Path(name).suffix for name in made.files if name != SUMS}
    assert kinds <= {".json", ".md", ".safetensors"}
    assert made.tags == {name: made.head}
    card = made.files["README.md"].decode()
    assert 'load_assistant("hf://somebody/my-model")' in card
    assert "OWNER/NAME" not in card
    settings = Settings(store=str(store), device="cpu")
    (tmp_path / "photo.png").write_bytes(image())
    (tmp_path / "ask.py").write_text(ASK)
    asking = [str(tmp_path / "ask.py"), ADDRESS, str(tmp_path / "photo.png")]
    there = run(tmp_path, hub.url, *asking)
    here = open_assistant(settings, None).ask(image(), "What colour?")
    assert there.stdout.strip() == here, there.stderr
    # The token went to the hub that was named and nowhere else, and into no file.
    assert {token for _, token in hub.asked} <= {TOKEN, ""}
    assert not (tmp_path / "asked").exists()
    assert all(TOKEN.encode() not in data for data in made.files.values())
    # Again: the repository is there already, and only the files are sent.
    again = run(tmp_path, hub.url, *export, "--public")
    assert again.returncode == 0, again.stderr
    assert made.made["visibility"] == "private"
    assert len(made.messages) == 1  # nothing has changed, so there is no second commit
    assert made.tags == {name: made.head}


def test_an_upload_that_broke_off_sends_only_what_is_missing(
    store: Path, hub: FakeHub, tmp_path: Path
) -> None:
    hub.lfs, hub.hold_after = True, 2
    export = ["flows.cli", "export", ADDRESS, "--store", str(store)]
    with start(tmp_path, hub.url, *export, HF_HUB_DISABLE_XET="1") as broken:
        assert hub.halfway.wait(120)
        broken.kill()
    first = dict(hub.blobs)
    assert len(first) == 2
    made = hub.repositories["somebody/my-model"]
    assert made.files == {}  # nothing is visible before all is there
    assert made.tags == {}
    hub.hold_after, asked = -1, len(hub.asked)
    done = run(tmp_path, hub.url, *export, HF_HUB_DISABLE_XET="1")
    assert done.returncode == 0, done.stderr
    sent = [path.rpartition("/")[2] for path, _ in hub.asked[asked:] if path.startswith("PUT ")]
    assert len(sent) == 1
    assert sorted([*sent, *first]) == sorted(hub.blobs)
    large = [data for file, data in made.files.items() if file.endswith(".safetensors")]
    assert {hashlib.sha256(data).hexdigest() for data in large} == set(hub.blobs)
    # A third time there is nothing to send.
    asked = len(hub.asked)
    again = run(tmp_path, hub.url, *export, HF_HUB_DISABLE_XET="1")
    assert again.returncode == 0, again.stderr
    assert not [path for path, _ in hub.asked[asked:] if path.startswith("PUT ")]
    assert len(made.messages) == 1


def test_another_export_replaces_the_first_and_leaves_what_is_not_ours(
    store: Path, hub: FakeHub, tmp_path: Path
) -> None:
    export = ["flows.cli", "export", ADDRESS, "--store", str(store)]
    assert run(tmp_path, hub.url, *export, "--lora", "beside").returncode == 0
    made = hub.repositories["somebody/my-model"]
    assert "adapter/adapter_config.json" in made.files
    [name] = made.tags
    made.add({**made.files, "LICENSE": b"theirs", ".gitattributes": b"*.bin filter=lfs"})
    assert run(tmp_path, hub.url, *export).returncode == 0
    assert not [file for file in made.files if file.startswith("adapter/")]
    assert made.files["LICENSE"] == b"theirs"
    assert made.tags == {name: made.head}  # the tag follows the newest export of its run


def test_a_new_repository_is_public_only_by_request(
    store: Path, hub: FakeHub, tmp_path: Path
) -> None:
    done = run(tmp_path, hub.url, "flows.cli", "export", ADDRESS, "--store", str(store), "--public")
    assert done.returncode == 0, done.stderr
    assert hub.repositories["somebody/my-model"].made["visibility"] == "public"


def test_a_space_is_uploaded_as_one(hub: FakeHub, tmp_path: Path) -> None:
    done = run(tmp_path, hub.url, "deployments.space.assemble", "hf://somebody/talk", ADDRESS)
    assert done.returncode == 0, done.stderr
    made = hub.repositories["somebody/talk"]
    assert (made.made["type"], made.made["sdk"]) == ("space", "gradio")
    assert {"app.py", "README.md", "requirements.txt", "flows/chat/page.py"} <= set(made.files)


@pytest.mark.parametrize(("token", "words"), [("hf_wrong", "401"), (TOKEN, "onnect")])
def test_a_refusal_and_no_network_are_one_line_without_the_token(
    store: Path, hub: FakeHub, tmp_path: Path, token: str, words: str
) -> None:
    endpoint = hub.url if token == "hf_wrong" else "http://127.0.0.1:9"
    export = ["flows.cli", "export", ADDRESS, "--store", str(store)]
    done = run(tmp_path, endpoint, *export, token=token)
    assert done.returncode == 1
    *waits, told, remedy = done.stderr.strip().splitlines()
    assert told.startswith(f"phivision: {ADDRESS} was not uploaded"), done.stderr
    assert words in told
    assert re.match(r"\s*→ check the network", remedy)
    assert waits == ["starting the export …", "writing the repository …"]
    assert token not in done.stderr
    assert hub.repositories == {}


def test_an_export_that_holds_captions_of_training_images_says_so(tmp_path: Path) -> None:
    assert captions_inside(tmp_path) == ""
    (tmp_path / CAPTIONS).write_text("[]")
    assert "evaluate.caption_samples=0" in captions_inside(tmp_path)
