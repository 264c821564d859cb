"""Whole runs, and crashed ones on a Prefect server, with a webhook on loopback."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.engine.dag import DAG
from tests.conftest import Cli, ForkedCli, assignments
from tests.e2e.prefect_service import AUTH, Service, descendants
from tests.e2e.secret_search import files_with, traces
from tests.support.forks import run_code
from tests.support.webhook_server import TOKEN, WebhookServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
SECRET = {"webhook": TOKEN}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Generator[Service]:
    running = Service(tmp_path_factory.mktemp("server"))
    try:
        running.server()
        yield running
    finally:
        running.stop()


def test_a_run_tells_what_became_of_it_once_and_never_the_address(
    service: Service, tiny: Mapping[str, object], tmp_path: Path
) -> None:
    with WebhookServer(500) as hook, WebhookServer() as lineage:
        cli = ForkedCli(
            tmp_path / "store",
            OPENLINEAGE_URL=lineage.url,
            PREFECT_API_URL=f"{service.url}/api",
            PREFECT_API_AUTH_STRING=AUTH,
            PREFECT_HOME=str(tmp_path / "home"),
            PHIVISION_PUBLISH_ANYWAY="false",
            PHIVISION_WEBHOOK=hook.address,
            PHIVISION_WANDB="offline",
        )
        runs = [cli("run", *assignments(tiny)), cli("run", *assignments(tiny))]
        assert [run.returncode for run in runs] == [3, 3], runs[0].stderr
        refused, again = hook.texts  # the first was answered with 500, so it came again
        assert refused == again
        told = [(each["eventType"], each["job"]["name"]) for each in lineage.received]
        ends = [(kind, stage.name) for stage in DAG for kind in ("START", "COMPLETE")]
        assert told == ends  # once: the second run had nothing to do
        assert [each["name"] for each in lineage.received[-1]["outputs"]] == ["publish"]
        assert refused.startswith("phivision did not publish run ")
        assert ": cider_d with the real image is " in refused
        assert " · cider_d " in refused  # the scores
        runs.append(cli("run", *assignments(tiny), "--publish-anyway"))  # nothing else to do
        assert hook.texts[2].startswith("phivision published run ")
        assert " anyway: cider_d with the real image is " in hook.texts[2]
        held = {**tiny, "examples.filters.held": "split = 'validation'"}
        runs.append(cli("run", *assignments(held)))
        assert runs[-1].returncode == 1
        assert "the run of preset demo failed: no caption is about a validation" in hook.texts[3]
        assert lineage.received[-1]["eventType"] == "FAIL"
        shutil.rmtree(tmp_path / "store" / "published")
        runs.append(retrained(cli, tiny))
        assert runs[-1].returncode == 0, runs[-1].stderr
        assert hook.texts[4].startswith("phivision did not publish run ")
        runs.append(retrained(cli, tiny))  # a night with nothing new
        assert len(hook.texts) == 5
    shutil.rmtree(tmp_path / "store" / "published")
    runs.append(cli("run", *assignments(tiny), "--publish-anyway"))
    assert runs[-1].returncode == 0
    assert "a notification is not delivered: the webhook cannot be reached" in runs[-1].stderr
    said = "".join(run.stdout + run.stderr for run in runs)
    assert traces(said.encode(), SECRET) == []
    folders = [tmp_path, service.folder]
    assert files_with(folders, SECRET) == {}
    assert any(path.suffix == ".wandb" for path in tmp_path.rglob("*"))


def retrained(cli: Cli, tiny: Mapping[str, object]) -> subprocess.CompletedProcess[str]:
    """Run the flow of the nightly deployment."""
    code = f"from flows.retrain import retrain; retrain(overrides={dict(tiny)!r})"
    return run_code(code, cli.environment, 600)


def test_a_crashed_run_is_told_by_the_server(service: Service) -> None:
    with WebhookServer() as hook:
        installed_twice(service, hook.address)
        assert [row["name"] for row in notices(service)] == [
            "phivision: a crashed run is told to the webhook"
        ]
        for flow in ("full-pipeline", "another"):
            crash(service, flow, 'its "machine" <died>')
        last = time.monotonic() + 60
        while not hook.received and time.monotonic() < last:
            time.sleep(0.2)
        time.sleep(2)  # for one too many
        (text,) = hook.texts
        assert text == (
            'phivision: the run planted of full-pipeline crashed: its "machine" &lt;died&gt;'
        )
        assert hook.types == ["application/json"]
    assert files_with([service.folder], SECRET) == {}
    installed_twice(service, "")
    assert notices(service) == []
    blocks = service.asked("block_documents", {})
    assert [row for row in blocks if row["name"] == "phivision-webhook"] == []


@pytest.mark.services
def test_a_killed_run_of_a_worker_is_told_and_then_the_one_that_resumes_it(
    tiny: Mapping[str, object], tmp_path: Path
) -> None:
    with WebhookServer() as hook:
        variables = {"PHIVISION_WEBHOOK": hook.address, "PHIVISION_PUBLISH_ANYWAY": "true"}
        service = Service(tmp_path, **variables)
        try:
            service.server()
            service.deploy()
            worker = service.worker()
            run = service.submit("full-pipeline/demo", overrides=dict(tiny))
            service.wait(lambda: service.stages(run).get("images") == "Completed", 300)
            for child in descendants(worker.pid)[1:]:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            service.wait(lambda: len(hook.texts) > 0, 120)
            assert " of full-pipeline crashed: Process exited with status" in hook.texts[0]
            resumed = service.submit("full-pipeline/demo", overrides=dict(tiny))
            assert service.finished(resumed)["name"] == "Completed"
            assert len(hook.texts) == 2, "\n".join(hook.texts)
            assert hook.texts[1].startswith("phivision published run ")
        finally:
            service.stop()
    assert files_with([tmp_path], SECRET) == {}


def installed_twice(service: Service, address: str) -> None:
    """Deploy for an address; the second time nothing changes."""
    code = "from deployments.finish_deploy import main; main([]); main([])"
    done = service.run(sys.executable, "-c", code, PHIVISION_WEBHOOK=address)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr


def notices(service: Service) -> list[Mapping[str, object]]:
    rows = service.asked("automations", {})
    return [row for row in rows if "webhook" in row["name"]]


def crash(service: Service, flow: str, message: str) -> None:
    """Have the server believe that a run of a flow ran and crashed."""
    known = service.answer("POST", "flows/", {"name": flow})
    pending = {"type": "PENDING"}
    told = {"flow_id": known["id"], "name": "planted", "state": pending}
    run = service.answer("POST", "flow_runs/", told)["id"]
    for state in ({"type": "RUNNING"}, {"type": "CRASHED", "message": message}):
        service.answer("POST", f"flow_runs/{run}/set_state", {"state": state, "force": True})
