"""The files for clusters hold together, as far as that can be seen without a cluster."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "deployments/kubernetes/job-template.json"
GIVEN = {
    "name": "demo",
    "labels": {"app": "phivision"},
    "command": ["prefect", "flow-run", "execute"],
    "env": [{"name": "PHIVISION_STORE", "value": "s3://bucket/vlm"}],
}


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


def test_shellcheck_finds_nothing_in_the_slurm_script() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    script = ROOT / "deployments/slurm/train.sbatch"
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_holds_every_room_and_runs_as_nobody_special() -> None:
    text = (ROOT / "deployments/kubernetes/Dockerfile").read_text()
    for room in ("deployments", "flows", "pipeline", "model", "storage"):
        assert f"COPY {room} {room}\n" in text
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
