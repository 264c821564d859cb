"""OpenLineage events, as a real server on loopback receives them, and as it fails to."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flows.lineage import lineage
from storage.store.manifest import Manifest
from tests.support.small_store import build_store
from tests.support.webhook_server import WebhookServer

pytest.importorskip("openlineage.client")


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Manifest]:
    store = build_store(tmp_path, runs=1)
    return {name: store.manifests(name)[0] for name in ("images", "features")}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    with WebhookServer() as server:
        monkeypatch.setenv("OPENLINEAGE_URL", server.url)
        yield server


def shown(event: dict[str, Any]) -> tuple[object, ...]:
    sides = [
        [(each["name"], each["facets"]["version"]["datasetVersion"]) for each in event[side]]
        for side in ("inputs", "outputs")
    ]
    return (event["eventType"], event["job"]["name"], *sides)


def test_a_stage_tells_its_start_and_its_end_with_what_went_in_and_came_out(
    server: WebhookServer, made: dict[str, Manifest]
) -> None:
    images, features = made["images"], made["features"]
    secret = "s3://user:planted-secret@bucket/vlm"
    with lineage(secret) as events, events.stage("features", {"images": images}) as tell:
        tell(features)
    went_in = [("images", images.digest)]
    start, end = server.received
    assert shown(start) == ("START", "features", went_in, [])
    assert shown(end) == ("COMPLETE", "features", went_in, [("features", features.digest)])
    assert start["run"]["runId"] == end["run"]["runId"]
    assert start["eventTime"] <= end["eventTime"]
    assert start["job"]["namespace"] == "phivision"
    assert server.paths == ["/api/v1/lineage"] * 2
    assert "planted-secret" not in str(server.received)


@pytest.mark.parametrize(("error", "kind"), [(ValueError, "FAIL"), (KeyboardInterrupt, "ABORT")])
def test_a_stage_that_fails_or_is_stopped_says_so_and_still_does(
    server: WebhookServer, error: type[BaseException], kind: str
) -> None:
    with pytest.raises(error), lineage("store") as events, events.stage("images", {}):
        raise error
    assert [each["eventType"] for each in server.received] == ["START", kind]


def test_nobody_is_told_without_a_variable(
    server: WebhookServer, made: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENLINEAGE_URL")
    with lineage("store") as events, events.stage("images", {}) as tell:
        tell(made["images"])
    assert server.received == []
    assert "phivision-lineage" not in [each.name for each in threading.enumerate()]


def test_a_receiver_that_refuses_is_told_once_and_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with WebhookServer(403, 403, 403) as server:
        monkeypatch.setenv("OPENLINEAGE_URL", server.url)
        with lineage("store") as events:
            for name in ("images", "conversations"):
                with events.stage(name, {}):
                    pass
        assert len(server.received) == 1  # none is sent to it after that
    said = capsys.readouterr().err
    assert said.count("OpenLineage events are not delivered") == 1
    assert server.url not in said


def test_a_receiver_that_hangs_holds_up_no_stage_and_the_end_only_a_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with WebhookServer(hang=30) as server:
        monkeypatch.setenv("OPENLINEAGE_URL", server.url)
        start = time.monotonic()
        with lineage("store", wait=0.5) as events:
            with events.stage("images", {}):
                pass
            assert time.monotonic() - start < 0.4
        assert time.monotonic() - start < 5
