"""The commands of docs/deployments.md, in order, on the demo's store; only the port is ours."""

import os
import re
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.e2e.prefect_service import BIN, ROOT, Service

pytestmark = [pytest.mark.e2e, pytest.mark.server, pytest.mark.timeout(3000)]

LASTING = {"make server", "make worker"}


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/deployments.md").read_text(), re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def service(tmp_path: Path, demo: tuple[Cli, str]) -> Generator[Service]:
    running = Service(
        tmp_path, PHIVISION_STORE=str(demo[0].store), PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}"
    )
    for name in ("PREFECT_API_URL", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"):
        del running.environment[name]
    running.environment["PREFECT_SERVER_API_PORT"] = str(running.port)
    running.environment["PREFECT_API_URL"] = f"{running.url}/api"
    yield running
    running.stop()


def test_the_page_shows_server_worker_deploy_run_and_schedule_in_order() -> None:
    shown = " ; ".join(commands())
    wanted = ("make server", "make worker", "make deploy", "deployment run", "schedule resume")
    places = [shown.index(each) for each in wanted]
    assert places == sorted(places)


def test_every_command_of_the_page_works(service: Service) -> None:
    printed, exports = {}, []
    for command in commands():
        if command in LASTING:
            service.start("bash", "-c", f"exec {command}")
            if command == "make server":
                service.wait(service.is_up, 600)
            continue
        line = command.replace(":4200", f":{service.port}")
        if line.startswith(("export ", "source ")):
            exports.append(line)
            continue
        script = "\n".join(["set -e", *exports, line])
        done = service.run("bash", "-c", script)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{service.logs()}"
        printed[command] = done.stdout + done.stderr
    runs = {
        row["deployment_id"]: row["state_name"]
        for row in service.client.post("flow_runs/filter", json={}).json()
        if row["state_type"] == "COMPLETED"
    }
    assert len(runs) == 2
    assert {"Nothing new"} <= set(runs.values())
