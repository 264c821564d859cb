"""Notifications against a real server on loopback: once, bounded, and never with the address."""

import logging
import socket
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from flows.notifications import nearly_full, notifying, tell_decision, watching_disks
from flows.webhook import LONGEST, VARIABLE, Webhook, webhook_address
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.published import add_entry, read_history
from tests.support.webhook_server import PATH, TOKEN, WebhookServer


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")


def decide_something(store: ArtifactStore, action: str) -> None:
    values = {"run": "ab12", "fingerprint": "f", "digest": "d", "against": ""}
    entry = add_entry(store, read_history(store), action=action, reason="cider_d < 1", **values)
    assert entry is not None
    tell_decision(store, entry)


def sent(server: WebhookServer, *texts: str, limit: float = 5.0, wait: float = 10.0) -> list[str]:
    """Send texts and return the lines about those that were not delivered."""
    lines: list[str] = []
    webhook = Webhook(SecretStr(server.address), limit, lines.append)
    for text in texts:
        webhook.send(text)
    webhook.close(wait)
    return lines


def test_texts_arrive_once_in_order_as_slacks_json() -> None:
    with WebhookServer() as server:
        assert sent(server, "first", "<!channel> a & b") == []
    assert server.received == [{"text": "first"}, {"text": "&lt;!channel&gt; a &amp; b"}]
    assert server.paths == [PATH, PATH]
    assert server.types == ["application/json"] * 2


def test_secrets_of_addresses_are_masked_and_long_texts_cut() -> None:
    with WebhookServer() as server:
        assert sent(server, "no answer from https://host/a?key=s3cret", "x" * 9000) == []
    assert server.texts == ["no answer from https://host/a?key=***", "x" * LONGEST]


def test_an_error_of_the_server_is_tried_again() -> None:
    with WebhookServer(500, 429) as server:
        assert sent(server, "hello") == []
    assert server.texts == ["hello"] * 3


@pytest.mark.parametrize("status", [302, 404, 504])
def test_another_refusal_is_not_and_no_redirect_is_followed(status: int) -> None:
    with WebhookServer(status) as server:
        (line,) = sent(server, "hello")
    assert line == f"a notification is not delivered: the webhook answers {status}"
    assert server.paths == [PATH]


def test_a_server_that_keeps_failing_is_asked_three_times() -> None:
    with WebhookServer(*[503] * 9) as server:
        (line,) = sent(server, "hello")
    assert "answers 503" in line
    assert len(server.received) == 3


def test_a_server_that_hangs_is_asked_once_and_the_next_text_still_sent() -> None:
    with WebhookServer(hang=1.0) as server:
        lines = sent(server, "first", "second", limit=0.2)
    assert (
        lines == ["a notification is not delivered: the webhook does not answer within 0.2 s"] * 2
    )
    assert server.texts == ["first", "second"]


def test_a_run_waits_no_longer_than_its_limit() -> None:
    with WebhookServer(hang=30.0) as server:
        began = time.monotonic()
        lines = sent(server, "hello", limit=20.0, wait=0.5)
        assert time.monotonic() - began < 3.0
    assert lines == ["a notification is not delivered: no answer within 0.5 s"]


def test_a_server_that_is_not_there_is_told_in_one_line_without_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines: list[str] = []
    webhook = Webhook(SecretStr(f"http://127.0.0.1:{port}{PATH}"), say=lines.append)
    webhook.send("hello")
    webhook.close()
    assert lines == ["a notification is not delivered: the webhook cannot be reached"]


def test_the_address_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with WebhookServer() as server:
        assert sent(server, "hello") == []
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    "text",
    ["ftp://host/x", "host/x", "https://", "http://[::1/x", "https://host:99999/x", "http://a b"],
)
def test_a_wrong_address_is_refused_without_repeating_it(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(PipelineError, match=VARIABLE) as raised, notifying("x"):
        pytest.fail("the run began")
    assert text == "https://" or text not in str(raised.value)


def test_an_empty_variable_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, " ")
    assert webhook_address() is None


def test_without_a_webhook_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch, store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with notifying("x"), watching_disks(Settings(store=store.uri)):
        decide_something(store, "published")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("action", "text"),
    [
        ("published", "phivision published run ab12 · store {}"),
        ("refused", "phivision did not publish run ab12: cider_d &lt; 1 · store {}"),
        ("forced", "phivision published run ab12 anyway: cider_d &lt; 1 · store {}"),
    ],
)
def test_a_decision_is_told(
    monkeypatch: pytest.MonkeyPatch, store: ArtifactStore, action: str, text: str
) -> None:
    with WebhookServer() as server:
        monkeypatch.setenv(VARIABLE, server.address)
        with notifying("x"):
            decide_something(store, action)
    assert server.texts == [text.format(store.uri)]


def test_a_failure_is_told_once_by_the_outermost(monkeypatch: pytest.MonkeyPatch) -> None:
    with WebhookServer() as server:
        monkeypatch.setenv(VARIABLE, server.address)
        with pytest.raises(PipelineError), notifying("preset demo"), notifying("inner"):
            raise PipelineError("the hub is silent", "try later")
        with pytest.raises(KeyError), notifying("preset demo"):
            raise KeyError("a row of the data")
        for stop in (KeyboardInterrupt, SystemExit):
            with pytest.raises(stop), notifying("preset demo"):
                raise stop
    assert server.texts == [
        "phivision: the run of preset demo failed: the hub is silent → try later",
        "phivision: the run of preset demo failed: KeyError, a defect: its traceback is in the log",
    ]


def test_a_nearly_full_disk_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with WebhookServer() as server:
        monkeypatch.setenv(VARIABLE, server.address)
        settings = Settings(store=str(tmp_path / "not" / "there"))
        with notifying("x"), watching_disks(settings, 1.0, float("inf")):  # any disk is
            time.sleep(0.5)
    (text,) = server.texts
    assert text.startswith(f"phivision: the disk of {tmp_path} is nearly full: ")
    assert text.removeprefix("phivision: ") in capsys.readouterr().err


def test_a_disk_is_nearly_full_by_both_limits(tmp_path: Path) -> None:
    assert nearly_full([tmp_path], 1.0, float("inf"))
    assert not nearly_full([tmp_path], 0.0, float("inf"))
    assert not nearly_full([tmp_path], 1.0, 0.0)
