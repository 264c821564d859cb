"""Real places for artifacts: a folder, `memory://`, and three clouds' servers on loopback."""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from storage.clouds import open_url
from storage.store.artifacts import ArtifactStore
from storage.store.commits import Provenance, commit
from storage.store.manifest import Manifest, canonical, fingerprint_of
from tests.support.cloud_servers import azure_server, gcs_server

PLACES = [
    "local",
    "memory",
    pytest.param("s3", marks=pytest.mark.s3),
    pytest.param("gcs", marks=pytest.mark.gcs),
    pytest.param("azure", marks=pytest.mark.azure),
]
_SCHEMES = {"s3": "s3", "gcs": "gs", "azure": "abfs"}
NOTHING = Provenance(summary={}, packages={}, commit="", seconds=0.0)
AWS = {
    "AWS_ACCESS_KEY_ID": "test-key-of-nobody",
    "AWS_SECRET_ACCESS_KEY": "test-secret-of-nobody",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Start moto's S3 server, point the AWS libraries at it, and give its address.

    `PHIVISION_TEST_S3` names another server that runs already; its keys are in the environment.
    """
    if other := os.environ.get("PHIVISION_TEST_S3"):
        with environment({**AWS, **_given(AWS), "AWS_ENDPOINT_URL": other}):
            yield other
        return
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with environment({**AWS, "AWS_ENDPOINT_URL": address}):
        yield address
    server.stop()


@pytest.fixture(scope="session")
def gcs_place() -> Iterator[None]:
    """Point gcsfs at a server on loopback."""
    with gcs_server() as values, environment(values):
        yield


@pytest.fixture(scope="session")
def azure_place() -> Iterator[None]:
    """Point adlfs at a server on loopback."""
    with azure_server() as values, environment(values):
        yield


def _given(names: Iterable[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def new_uri(place: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """Return the address of an empty place."""
    name = f"store-{uuid.uuid4().hex[:12]}"
    if place == "local":
        return str(folder / name)
    if place == "memory":
        return f"memory://{name}"
    request.getfixturevalue("s3_server" if place == "s3" else f"{place}_place")
    open_url(f"{_SCHEMES[place]}://{name}")[0].mkdir(name)
    return f"{_SCHEMES[place]}://{name}/below/here"


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def store(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> ArtifactStore:
    """An empty store at each kind of place."""
    return ArtifactStore(new_uri(place, tmp_path, request), tmp_path / "cache")


@pytest.fixture
def local(tmp_path: Path) -> ArtifactStore:
    """An empty store in a folder."""
    return ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")


@pytest.fixture
def s3(tmp_path: Path, request: pytest.FixtureRequest) -> ArtifactStore:
    """An empty store in a bucket."""
    return ArtifactStore(new_uri("s3", tmp_path, request), tmp_path / "cache")


def again(store: ArtifactStore, cache: Path, limit: int = 2**30) -> ArtifactStore:
    """Return the same store as another machine sees it."""
    uri = store.uri if store.local or "://" in store.uri else f"memory:/{store.uri}"
    return ArtifactStore(uri, cache, limit)


def payload(stage: str = "numbers", **changes: Any) -> dict[str, Any]:
    """Return a payload; each change gives another fingerprint."""
    return {"stage": stage, "recipe": {"seed": 0}, "code": {}, "inputs": {}, "source": {}} | changes


def add(
    store: ArtifactStore,
    folder: Path,
    files: Mapping[str, bytes],
    what: dict[str, Any] | None = None,
    *,
    provenance: Provenance = NOTHING,
    replace: bool = False,
    warn: Callable[[str], None] = print,
) -> Manifest:
    """Commit files as an artifact."""
    out = folder / uuid.uuid4().hex
    out.mkdir(parents=True)
    for name, data in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    made_from = payload() if what is None else what
    return commit(
        store, out, made_from, fingerprint_of(made_from), provenance, replace=replace, warn=warn
    )


def sealed(body: Mapping[str, Any]) -> bytes:
    """Return a manifest's text with the checksum that belongs to its content."""
    bare = {key: value for key, value in body.items() if key != "check"}
    check = hashlib.sha256(canonical(bare)).hexdigest()
    return json.dumps({**bare, "check": check}).encode()


def overwrite(store: ArtifactStore, name: str, data: bytes) -> None:
    """Change an object behind the store's back, as damage does."""
    store.files.remove(name)
    store.files.write(name, data)


def flip(store: ArtifactStore, name: str, at: int = 0) -> None:
    """Flip one bit of an object, in place where there is such a thing."""
    if store.local:
        path = store.files.path(name)  # ty: ignore[unresolved-attribute]
        with path.open("r+b") as stream:
            stream.seek(at)
            byte = stream.read(1)[0]
            stream.seek(at)
            stream.write(bytes([byte ^ 1]))
        return
    data = bytearray(store.read(name) or b"")
    data[at] ^= 1
    overwrite(store, name, bytes(data))
