"""The identity of a source tells when it changed, without reading it."""

import errno
import hashlib
import os
import random
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import fsspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from fsspec.registry import known_implementations

from storage.errors import StorageError, TransientError
from storage.fetch.remote import open_stream, probe
from tests.support.fault_server import Fault, FaultServer

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


@pytest.mark.parametrize("much", [False, True], ids=["little", "much"])
def test_probe_is_not_fooled_by_an_old_time_of_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, much: bool
) -> None:
    if much:
        monkeypatch.setattr("storage.fetch.remote._READ_AT_ONCE", 1)
    file = tmp_path / "set" / "captions.json"
    file.parent.mkdir()
    file.write_bytes(b"[1]")
    os.utime(file, (1000, 1000))
    before = probe(str(file.parent)), probe(str(file))
    (tmp_path / "new").write_bytes(b"[2]")
    os.utime(tmp_path / "new", (1000, 1000))
    (tmp_path / "new").replace(file)
    after = probe(str(file.parent)), probe(str(file))
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_probe_of_little_data_knows_the_content_alone(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_bytes(b"[1]")
    before = probe(str(tmp_path))
    os.utime(tmp_path / "captions.json", (1000, 1000))
    assert probe(str(tmp_path)) == before


def test_probe_follows_links(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "blobs" / "more").mkdir(parents=True)
    (tmp_path / "blobs" / "more" / "x").write_bytes(b"1")
    (tmp_path / "set" / "more").symlink_to("../blobs/more")
    (tmp_path / "set" / "gone").symlink_to("nowhere")
    before = probe(str(tmp_path / "set"))
    (tmp_path / "blobs" / "more" / "x").write_bytes(b"2")
    assert probe(str(tmp_path / "set")) != before


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


def test_a_file_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(BODY)

    def refuse(path: object, *arguments: object, **options: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    with monkeypatch.context() as closed:  # by hand, because root may read everything
        closed.setattr("builtins.open", refuse)
        with pytest.raises(StorageError, match=r"/a may not be read\n  → check the credentials"):
            open_stream(str(tmp_path / "a"))


def test_a_scheme_whose_package_is_not_here_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"class": "no_such_package.Files", "err": "install no_such_package"}
    monkeypatch.setitem(known_implementations, "uninstalled", known)
    with pytest.raises(StorageError, match="uninstalled://a/b needs a package: install no_such"):
        probe("uninstalled://a/b")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody vouches for, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    return path


def test_a_certificate_that_nobody_vouches_for_is_told_at_once(
    server: FaultServer, certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.serve("/a", BODY).replace("http://", "https://")
    with pytest.raises(StorageError, match=r"certificate is not valid for 127\.0\.0\.1") as told:
        probe(url)
    assert not isinstance(told.value, TransientError)
