"""The whole DAG on S3 and where its network fails: the same bytes as in a folder."""

import pytest
import s3fs

from storage.store.artifacts import ArtifactStore
from storage.store.verify import committed, verify
from tests.faults.conftest import Pipeline, Reference, digests
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.store_fixtures import environment

pytestmark = [pytest.mark.e2e, pytest.mark.s3, pytest.mark.timeout(600)]


def test_on_a_bucket_that_fails_now_and_then_all_comes_out_the_same(
    pipeline: Pipeline, reference: Reference, s3_server: str
) -> None:
    s3fs.S3FileSystem().mkdir("whole-dag")
    with FaultProxy(s3_server) as proxy, environment({"AWS_ENDPOINT_URL": proxy.url}):
        proxy.faults = [
            Fault(times=5, method="PUT", path="/artifacts/", status=503),
            Fault(times=2, method="PUT", path="/manifests/", lost=True),
            Fault(times=5, method="GET", path="/artifacts/", cut=1000),
            Fault(times=2, method="GET", path="list-type", status=500),
        ]
        rows = pipeline.finish(pipeline.folder / "bucket", "s3://whole-dag/store")
        assert [fault.times for fault in proxy.faults] == [0, 0, 0, 0]
        assert [row[1] for row in rows] == ["made"] * 9
        rows = pipeline.finish(pipeline.folder / "bucket", "s3://whole-dag/store")
        assert [row[1] for row in rows] == ["cached"] * 9
    found = ArtifactStore("s3://whole-dag/store", pipeline.folder / "cache")
    assert digests(found) == reference.digests
    assert verify(found, committed(found), lambda _: None) == []
