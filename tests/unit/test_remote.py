"""The identity of a source tells when it changed, without reading it."""

import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from storage.errors import StorageError
from storage.remote import probe
from tests.fault_server import Fault, FaultServer

BODY = random.Random(0).randbytes(100_000)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as started:
        yield started


def test_probe_tells_when_a_local_source_changed(tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "x.jpg").write_bytes(b"1")
    before = probe(str(tmp_path / "set"))
    assert before == probe((tmp_path / "set").as_uri()) == probe(str(tmp_path / "set"))
    (tmp_path / "set").rename(tmp_path / "moved")
    assert probe(str(tmp_path / "moved")) == before
    (tmp_path / "moved" / "a" / "y.jpg").write_bytes(b"1")
    assert probe(str(tmp_path / "moved")) != before
    single = probe(str(tmp_path / "moved" / "a" / "x.jpg"))
    (tmp_path / "moved" / "a" / "x.jpg").write_bytes(b"22")
    assert probe(str(tmp_path / "moved" / "a" / "x.jpg")) != single


def test_probe_of_http_reads_one_byte(server: FaultServer) -> None:
    url = server.serve("/a", BODY)
    etag = f'"{hashlib.md5(BODY).hexdigest()}"'
    assert probe(url) == {"etag": etag, "size": str(len(BODY))}
    deadline = time.monotonic() + 10
    while not server.sent() and time.monotonic() < deadline:
        time.sleep(0.01)  # the server counts a byte after it has left
    assert server.sent() == 1
    server.always = Fault(ignore_range=True)
    assert probe(url) == {"etag": etag, "size": str(len(BODY))}


def test_probe_of_another_store() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/probe/a", b"1")
    one, folder = probe("memory://probe/a"), probe("memory://probe")
    assert one["size"] == "1"
    assert folder == probe("memory://probe")
    memory.pipe_file("/probe/a", b"22")
    assert probe("memory://probe/a") != one
    assert probe("memory://probe") != folder


@pytest.mark.parametrize("place", ["memory://none", "{tmp}/none", "{http}/none"])
def test_probe_names_what_is_missing(server: FaultServer, tmp_path: Path, place: str) -> None:
    url = place.format(tmp=tmp_path, http=f"http://127.0.0.1:{server.port}")
    with pytest.raises(StorageError, match="none"):
        probe(url)
