"""A finished store that can only be read: what is there is found, and nothing is a failure."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import assignments
from tests.faults.conftest import ROOT, Reference, environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.mark.parametrize("latest", ["this run", "another run"])
def test_a_cached_run_on_a_read_only_disk_succeeds(
    reference: Reference, tmp_path: Path, tiny: Mapping[str, object], latest: str
) -> None:
    store = tmp_path / "store"
    shutil.copytree(reference.store, store, ignore=shutil.ignore_patterns("stamps"))
    if latest == "another run":
        (store / "refs" / "latest").write_text("0123456789")
    mount = f"mount --bind {store} {store} && mount -o remount,bind,ro {store} && exec"
    run = [sys.executable, "-m", "flows.cli", "run", "--store", str(store), *assignments(tiny)]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{mount} "$@"', "", *run],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no read-only disk can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "nothing to do: every stage is cached" in done.stdout
    assert "the store is read-only, so this run was not recorded" in done.stdout
