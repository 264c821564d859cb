"""Clouds as users meet them first: without the package, without credentials, without rights."""

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.registry import _registry, registry

from storage.clouds import cloud_of, explain, status_of
from storage.errors import StorageError
from storage.fetch.remote import open_stream
from storage.store.artifacts import ArtifactStore
from storage.store.objects import ObjectFiles
from tests.support.loopback import LoopbackServer, QuietHandler
from tests.support.store_fixtures import new_uri

ANONYMOUS = "Anonymous caller does not have storage.objects.get access to the object."
CONNECTION = "DefaultEndpointsProtocol=http;AccountName=nobody;AccountKey=Zm9v;BlobEndpoint={}/n;"


class Refusing(LoopbackServer):
    """Answers everything with one status and text."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message
        super().__init__(_Refusal)


class _Refusal(QuietHandler):
    server: Refusing

    def do_GET(self) -> None:
        error = {"error": {"code": self.server.status, "message": self.server.message}}
        data = json.dumps(error).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No credentials anywhere, and no filesystem that was opened with some."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget()
    yield
    forget()


def forget() -> None:
    for scheme in ("s3", "gs", "abfs"):
        if scheme in registry:
            registry[scheme].clear_instance_cache()


@pytest.mark.parametrize(
    ("uri", "module", "extra"),
    [
        ("s3://bucket/x", "s3fs", "s3"),
        ("gs://bucket/x", "gcsfs", "gcs"),
        ("gcs://bucket/x", "gcsfs", "gcs"),
        ("abfs://container/x", "adlfs", "azure"),
        ("az://container/x", "adlfs", "azure"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(
    uri: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(_registry, uri.partition("://")[0], raising=False)
    told = f"{uri} needs a package that is not installed\n  → pip install 'phivision[{extra}]'"
    with pytest.raises(StorageError) as caught:
        ArtifactStore(uri, tmp_path)
    assert str(caught.value) == told
    with pytest.raises(StorageError) as caught:
        open_stream(uri)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("uri", "variable"),
    [
        ("s3://bucket/x", "AWS_ACCESS_KEY_ID"),
        pytest.param(  # gcsfs waits between attempts of its own
            "gs://bucket/x", "GOOGLE_APPLICATION_CREDENTIALS", marks=pytest.mark.gcs
        ),
        ("abfs://container/x", "AZURE_STORAGE_CONNECTION_STRING"),
    ],
)
@pytest.mark.usefixtures("nobody")
def test_missing_credentials_are_told_as_such(
    uri: str, variable: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with Refusing(401, ANONYMOUS) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        # Three pauses of an hour: without credentials nothing is tried again.
        for use in (
            lambda: ObjectFiles(uri, pauses=(3600.0,)).write("a", b"1"),
            lambda: ObjectFiles(uri).list("a"),
            lambda: open_stream(f"{uri}/a"),
        ):
            with pytest.raises(StorageError, match=r"there are no credentials\n  → set ") as caught:
                use()
            assert variable in str(caught.value)
            assert "check the address" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("scheme", ["s3", pytest.param("gs", marks=pytest.mark.gcs), "abfs"])
@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.usefixtures("nobody")
def test_refused_credentials_are_told_as_such(
    scheme: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Refusing(status, "The account may not write here.") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", CONNECTION.format(server.url))
        files = ObjectFiles(f"{scheme}://bucket/x", pauses=(3600.0,))
        with pytest.raises(StorageError, match=r"permission denied\n  → check the rights, and the"):
            files.write("a", b"1")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("s3", marks=pytest.mark.s3),
        pytest.param("gcs", marks=pytest.mark.gcs),
        pytest.param("azure", marks=pytest.mark.azure),
    ],
)
def test_of_many_creations_at_once_one_wins(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The library's own condition decides, not our look at what is there."""
    files = ObjectFiles(new_uri(place, tmp_path, request))
    files.read = lambda _: None  # ty: ignore[invalid-assignment]
    won: list[int] = []

    def create(number: int) -> None:
        if files.create("leases/1.json", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = ObjectFiles(f"{files.uri}")
    assert [again.read("leases/1.json")] == [b"%d" % number for number in won]


@pytest.mark.parametrize(
    "place",
    [pytest.param("gcs", marks=pytest.mark.gcs), pytest.param("azure", marks=pytest.mark.azure)],
)
def test_a_bucket_that_is_not_there_is_named(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = new_uri(place, tmp_path, request).replace("/below/here", "-else")
    with pytest.raises(StorageError, match="there is no such bucket or object"):
        ObjectFiles(uri, pauses=()).write("a", b"1")


def test_other_places_and_failures_are_left_to_others() -> None:
    assert cloud_of("memory://x") is None
    assert explain("memory://x", PermissionError("no")) is None
    assert explain("s3://x", TimeoutError("slow")) is None
    assert status_of(ValueError("x")) is None
    assert logging.getLogger("gcsfs").level == logging.CRITICAL
