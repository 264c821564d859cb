"""S3 that answers 500 or 503, late, not at all, half or wrong: each is survived or told."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.store.objects import ObjectFiles
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.store_fixtures import add, environment, new_uri

pytestmark = pytest.mark.s3
FILES = {"table.parquet": bytes(range(256)) * 4000, "config.json": b"{}"}


@pytest.fixture
def proxy(s3_server: str) -> Iterator[FaultProxy]:
    """A proxy before the S3 server; the AWS libraries are pointed at it."""
    import s3fs

    with FaultProxy(s3_server) as proxy, environment({"AWS_ENDPOINT_URL": proxy.url}):
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(proxy: FaultProxy, tmp_path: Path, request: pytest.FixtureRequest) -> ArtifactStore:
    return ArtifactStore(new_uri("s3", tmp_path, request), tmp_path / "cache")


FAULTS = {
    "500 twice": Fault(times=2, status=500),
    "503 twice": Fault(times=2, status=503),
    "no answer": Fault(times=2, lost=True),
    "slow": Fault(times=3, delay=0.3),
}
READS = {
    "a truncated body": Fault(times=1, method="GET", path="table", cut=70_000),
    "an empty body": Fault(times=1, method="GET", path="table", cut=0),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_commit_survives(store: ArtifactStore, proxy: FaultProxy, tmp_path: Path, fault) -> None:  # noqa: ANN001
    proxy.faults = [Fault(**vars(fault))]
    proxy.faults[0].method = "PUT"
    made = add(store, tmp_path, FILES, warn=pytest.fail)
    assert any(seen.fault for seen in proxy.seen)
    assert store.find("numbers", made.fingerprint) == made
    assert store.damage(made) == ""
    assert store.list("artifacts/numbers") == [made.folder]


@pytest.mark.parametrize("fault", [*FAULTS.values(), *READS.values()], ids=[*FAULTS, *READS])
def test_a_read_survives(store: ArtifactStore, proxy: FaultProxy, tmp_path: Path, fault) -> None:  # noqa: ANN001
    made = add(store, tmp_path, FILES)
    proxy.faults = [Fault(**vars(fault))]
    proxy.faults[0].method = "GET"
    path = store.artifact(made).path("table.parquet")
    assert any(seen.fault for seen in proxy.seen)
    assert path.read_bytes() == FILES["table.parquet"]


def test_a_write_outlasts_a_longer_outage_and_gives_up_in_the_end(
    store: ArtifactStore, proxy: FaultProxy
) -> None:
    import s3fs

    with environment({"AWS_MAX_ATTEMPTS": "1"}):  # botocore's own patience would take a minute
        s3fs.S3FileSystem.clear_instance_cache()
        files = ObjectFiles(store.uri, pauses=(0.1, 0.1))
        proxy.faults = [Fault(times=2, method="PUT", status=500)]
        assert files.create("a", b"1")
        assert proxy.faults[0].times == 0
        proxy.faults = [Fault(times=100, method="PUT", status=500)]
        with pytest.raises(StorageError, match=r"cannot write s3://.*/b: .*\n.*work is kept"):
            files.write("b", b"2")
    assert files.read("b") is None


def test_a_body_that_breaks_off_again_and_again_is_asked_for_again(
    store: ArtifactStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    made = add(store, tmp_path, FILES)
    proxy.faults = [Fault(times=6, method="GET", path="config", cut=1)]
    assert store.artifact(made).path("config.json").read_bytes() == b"{}"
    assert proxy.faults[0].times == 0


@pytest.mark.parametrize("cut", [0, 1, 200])
def test_a_manifest_that_is_cut_short_on_the_way_is_no_damage(
    store: ArtifactStore, proxy: FaultProxy, tmp_path: Path, cut: int
) -> None:
    """Taken for damaged, it would be made again and replaced."""
    made = add(store, tmp_path, FILES)
    proxy.faults = [Fault(times=1, method="GET", path="/manifests/", cut=cut)]
    assert store.find("numbers", made.fingerprint) == made
    assert proxy.faults[0].times == 0


def test_a_lost_acknowledgement_of_the_manifest_is_no_second_artifact(
    store: ArtifactStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.faults = [Fault(times=1, method="PUT", path="/manifests/", lost=True)]
    made = add(store, tmp_path, FILES, warn=pytest.fail)
    assert proxy.faults[0].times == 0
    assert store.find("numbers", made.fingerprint) == made
    assert store.list("artifacts/numbers") == [made.folder]


def test_a_bit_that_flips_on_the_way_is_never_served(
    store: ArtifactStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    made = add(store, tmp_path, FILES)
    proxy.faults = [Fault(times=100, method="GET", path="table", flip=5)]
    with pytest.raises(StorageError, match=r"table\.parquet"):
        store.artifact(made).path("table.parquet")
    assert not list((tmp_path / "cache").rglob("table.parquet"))


def test_one_bit_that_flips_on_the_way_once_costs_nothing(
    store: ArtifactStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    made = add(store, tmp_path, FILES)
    proxy.faults = [Fault(times=1, method="GET", path="config", flip=0)]
    try:
        store.artifact(made).path("config.json")
    except StorageError:  # the library's own checksum found it, and it does not try again
        store.artifact(made).path("config.json")
    assert store.damage(made) == ""


def test_forbidden_is_told_and_is_not_taken_for_missing(
    store: ArtifactStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    made = add(store, tmp_path, FILES)
    proxy.faults = [Fault(times=100, status=403)]
    with pytest.raises(
        StorageError, match=r"permission denied\n  → check the rights, and the credentials: AWS_"
    ):
        store.find("numbers", made.fingerprint)
    with pytest.raises(StorageError, match=r"permission denied|403|Forbidden"):
        add(store, tmp_path, FILES)


def test_no_server_at_all_is_one_clear_line(tmp_path: Path, s3_server: str) -> None:
    import s3fs

    with environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}):
        s3fs.S3FileSystem.clear_instance_cache()
        store = ArtifactStore("s3://bucket/x", tmp_path)
        with pytest.raises(StorageError, match=r"cannot read s3://bucket/x/a: .*127\.0\.0\.1:9"):
            store.read("a")
    s3fs.S3FileSystem.clear_instance_cache()
