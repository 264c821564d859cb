"""The files for clusters hold together, as far as that can be seen without a cluster."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SLURM = ROOT / "deployments/slurm/train.sbatch"
TEMPLATE = ROOT / "deployments/kubernetes/job-template.json"
GIVEN = {
    "name": "demo",
    "labels": {"app": "phivision"},
    "command": ["prefect", "flow-run", "execute"],
    "env": [{"name": "PHIVISION_STORE", "value": "s3://bucket/vlm"}],
}


# What each step of a job is given; an srun since Slurm 22.05 looks nowhere else for its CPUs.
SRUN = """
echo "${SRUN_CPUS_PER_TASK:-1} CPUs: $*" >> "$STEPS"
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
ASK_THE_CLUSTER = """
import os, subprocess, sys
from distributed import Client
with Client(os.environ["PHIVISION_TASK_RUNNER"]) as client:
    print(client.submit(pow, 2, 3).result(), sys.argv[1:])
subprocess.run(os.environ["PHIVISION_LAUNCHER"].split(), check=True)
"""


def template() -> dict[str, Any]:
    return json.loads(TEMPLATE.read_text())


def test_every_placeholder_is_a_variable_and_every_variable_is_used() -> None:
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template()["job_configuration"])))
    assert used == set(template()["variables"]["properties"])


def test_the_job_runs_without_rights_it_does_not_need() -> None:
    pod = template()["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


def test_work_is_kept_where_the_pool_says() -> None:
    variables = template()["variables"]["properties"]
    claim = {"name": "work", "persistentVolumeClaim": {"claimName": "phivision-work"}}
    known = {k: v.get("default") for k, v in variables.items()} | {"work_volume": claim}
    job = _filled(template()["job_configuration"]["job_manifest"], known | GIVEN)
    assert claim in job["spec"]["template"]["spec"]["volumes"]
    assert variables["work_volume"]["default"]["name"] == claim["name"]


def test_kubectl_reads_the_job(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    known = {k: v.get("default") for k, v in template()["variables"]["properties"].items()} | GIVEN
    manifest = tmp_path / "job.json"
    manifest.write_text(json.dumps(_filled(template()["job_configuration"]["job_manifest"], known)))
    command = ["kubectl", "set", "image", "--local", "-f", str(manifest), "prefect-job=x:1"]
    done = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    container = json.loads(done.stdout)["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "x:1"
    assert container["args"] == GIVEN["command"]


def test_the_page_makes_a_pool_deploys_to_it_and_starts_its_worker() -> None:
    page = " ".join((ROOT / "docs/deployments.md").read_text().split())
    pool = "phivision-k8s"
    assert f"`prefect work-pool create {pool} --type kubernetes " in page
    assert f"`PREFECT_DEFAULT_WORK_POOL_NAME={pool} make deploy`" in page
    assert "`pip install prefect-kubernetes`" in page
    assert f"`prefect worker start --pool {pool} --type kubernetes`" in page


def test_shellcheck_finds_nothing_in_the_slurm_script() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", SLURM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_bash_reads_the_slurm_script() -> None:
    done = subprocess.run(["bash", "-n", SLURM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_requeued_job_uses_its_own_scheduler_and_all_its_cpus(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    submitted, work = tmp_path / "submitted", tmp_path / "work"
    # Slurm and phivision stand in for themselves; Dask's scheduler, worker and client are real.
    program(submitted / "bin/srun", SRUN)
    program(submitted / "bin/torchrun", "exit 0")
    program(submitted / "bin/dask", f'exec {sys.executable} -m dask "$@" --host 127.0.0.1')
    program(submitted / "bin/python", f'exec {sys.executable} "$@"')
    program(submitted / "bin/phivision", f"exec {sys.executable} -c '{ASK_THE_CLUSTER}' \"$@\"")
    activate = submitted / ".venv/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f'export PATH="{submitted / "bin"}:$PATH"\n')
    work.mkdir()
    left = work / "dask-7.json"
    left.write_text('{"address": "tcp://127.0.0.1:1"}')
    given = {
        "SLURM_SUBMIT_DIR": str(submitted),
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "5",
        "STEPS": str(tmp_path / "steps"),
        "PHIVISION_STORE": str(tmp_path / "store"),
        "PHIVISION_WORKDIR": str(work),
    }
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(
            ["bash", SLURM, "--set", "seed=1"],
            env=os.environ | given,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = job.communicate(timeout=100)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0, (tmp_path / "log").read_text()
    assert printed == "8 ['run', '--preset', 'coco', '--set', 'seed=1']\n"
    assert not left.exists()
    worker, training = (tmp_path / "steps").read_text().splitlines()
    assert worker.startswith("5 CPUs: --overlap dask worker ")
    assert training.startswith("5 CPUs: --overlap torchrun ")


def program(path: Path, body: str) -> None:
    """Write a program for bash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def test_the_image_holds_every_room_and_runs_as_nobody_special() -> None:
    text = (ROOT / "deployments/kubernetes/Dockerfile").read_text()
    for package in ("deployments", "flows", "pipeline", "model", "storage"):
        assert f"COPY {package} {package}\n" in text
    assert re.search(r"^USER phivision$", text, re.MULTILINE)


def _filled(value: Any, known: dict[str, Any]) -> Any:
    """Return a manifest with its placeholders replaced, as a Prefect worker does it."""
    if isinstance(value, dict):
        return {key: _filled(each, known) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, known) for each in value]
    if not isinstance(value, str):
        return value
    if whole := re.fullmatch(r"\{\{ (\w+) \}\}", value):
        return known[whole[1]]
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: str(known[found[1]]), value)
