"""Which assistant `ask`, `caption` and `chat` mean, and that a wrong one is told at once."""

import json
from pathlib import Path

import pytest

from flows.cli import main
from flows.commands.bundle_place import find_bundle
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest
from tests.support.tiny_bundle import image, publish_tiny


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with one run that is called `refused` and published, and one without an assistant."""
    root = tmp_path_factory.mktemp("place")
    settings = Settings(store=str(root / "store"), workdir=root / "work", device="cpu")
    store = ArtifactStore(settings.store, settings.work / "cache")
    publish_tiny(store, root / "made")
    manifest = store.manifests("publish")[0]
    stage = {"fingerprint": manifest.fingerprint, "digest": manifest.digest}
    for name, stages in (("0123456789", {"publish": stage}), ("9876543210", {})):
        body = {"run": name, "created": 1.0, "stages": stages, "made": [], "recipe": {}}
        store.write(f"runs/{name}.json", json.dumps(body).encode())
    return settings


def test_a_runs_own_assistant_is_found_by_the_start_of_its_name(settings: Settings) -> None:
    found = find_bundle(settings, "0123", None)
    assert isinstance(found, Manifest)
    assert found == find_bundle(settings, None, None)


def test_a_run_without_an_assistant_is_told(settings: Settings) -> None:
    with pytest.raises(PipelineError, match="assistant of run 9876543210 is gone"):
        find_bundle(settings, "9876543210", None)


def test_an_address_of_the_hub_is_kept_as_it_is(settings: Settings) -> None:
    assert find_bundle(settings, None, "hf://owner/name") == "hf://owner/name"


def test_a_run_answers(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "red.png").write_bytes(image())
    main(["ask", str(tmp_path / "red.png"), "What?", "--run", "0123", "--store", settings.store])
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--run", "nope"), "0 runs match 'nope'"),
        (("--bundle", "nowhere"), "No such folder: nowhere"),
        (("--bundle", "."), "not a bundle: . has no bundle.json"),
        (("--run", "0123", "--bundle", "."), "--run and --bundle each name an assistant"),
    ],
)
@pytest.mark.parametrize("command", ["ask", "caption", "chat"])
def test_what_does_not_exist_is_told_before_anything_is_loaded(
    command: str,
    options: tuple[str, ...],
    words: str,
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "red.png").write_bytes(image())
    given = {"ask": ["red.png", "What?"], "caption": ["red.png"], "chat": []}[command]
    with pytest.raises(SystemExit) as ended:
        main([command, *given, *options, "--store", settings.store])
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert told.startswith(f"phivision: {words}")
    assert "loading" not in told
