"""The benchmark of cached runs measures what it says: a store in which nothing is left to do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine.dag import DAG
from tests.benchmarks.cached_run import same_shape
from tests.faults.conftest import ROOT, Reference, environment, opened

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_the_benchmark_prints_the_times_of_cached_commands(
    reference: Reference, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(reference.store, store, ignore=shutil.ignore_patterns("stamps"))
    command = [sys.executable, "tests/benchmarks/cached_run.py", "--store", str(store)]
    done = subprocess.run(
        [*command, "--no-dvc", "--repeats", "1"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[:2]] == [
        "phivision plan",
        "phivision run",
    ]


def test_dvc_gets_the_same_stages_code_and_files(reference: Reference, tmp_path: Path) -> None:
    store = opened(reference.store)
    assert same_shape(store, tmp_path) == sum(
        len(store.manifests(stage.name)[0].files) for stage in DAG
    )
    stages = json.loads((tmp_path / "dvc.yaml").read_text())["stages"]
    assert list(stages) == [stage.name for stage in DAG]
    outputs = {out for stage in stages.values() for out in stage["outs"]}
    for stage in stages.values():
        code = [name for name in stage["deps"] if name not in outputs]
        assert code
        assert all((tmp_path / name).is_file() for name in code)
