"""The deployments on a real Prefect server with basic authentication and two workers."""

import shutil
import subprocess
from collections.abc import Generator, Mapping
from pathlib import Path

import httpx
import pytest

from pipeline.dag import BY_NAME
from tests.e2e.prefect_service import Service, as_json, kill_group

pytestmark = [pytest.mark.e2e, pytest.mark.server, pytest.mark.timeout(3000)]

STAGES = set(BY_NAME)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Generator[Service]:
    """A server with the deployments; workers are started where they are needed."""
    running = Service(tmp_path_factory.mktemp("service"))
    try:
        running.server()
        running.deploy()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def made(
    service: Service, tiny: Mapping[str, object]
) -> Generator[tuple[list[str], list[subprocess.Popen[bytes]]]]:
    """Two runs of the tiny demo at the same time, on two workers and one store."""
    workers = [service.worker(), service.worker()]
    runs = [service.submit("full-pipeline/demo", overrides=dict(tiny)) for _ in workers]
    for run in runs:
        state = service.finished(run)
        assert state["type"] == "COMPLETED", state["message"]
    yield runs, workers
    for worker in workers:
        kill_group(worker)


def test_no_stage_is_made_twice_by_two_workers(
    service: Service, made: tuple[list[str], list[subprocess.Popen[bytes]]]
) -> None:
    first, second = (service.stages(run) for run in made[0])
    assert set(first) == set(second) == STAGES
    for stage in STAGES:
        assert sorted([first[stage], second[stage]]) == ["Cached", "Completed"], stage


@pytest.mark.usefixtures("made")
def test_the_second_run_is_cached_in_every_stage(
    service: Service, tiny: Mapping[str, object]
) -> None:
    done = service.prefect(
        "deployment", "run", "full-pipeline/demo", "-p", f"overrides={as_json(dict(tiny))}"
    )
    assert done.returncode == 0, done.stderr
    run = done.stdout.partition("UUID:")[2].split()[0]
    state = service.finished(run)
    assert state["type"] == "COMPLETED"
    assert "nothing to do" in state["message"]
    assert service.stages(run) == dict.fromkeys(STAGES, "Cached")


@pytest.mark.usefixtures("made")
def test_the_report_hangs_in_the_window(service: Service) -> None:
    asked = {"artifacts": {"key": {"any_": ["report"]}}}
    (found,) = service.client.post("artifacts/latest/filter", json=asked).json()
    (page,) = (service.store / "reports").glob("*.html")
    assert found["data"].startswith(f"# Report of run {page.stem}\n\n[{page}](file://{page})")
    assert "| finetune | cider_d |" in found["data"]


@pytest.mark.usefixtures("made")
def test_retraining_with_nothing_new_starts_no_stage_and_says_so(
    service: Service, tiny: Mapping[str, object]
) -> None:
    run = service.submit("retrain/nightly", overrides=dict(tiny))
    state = service.finished(run)
    assert (state["type"], state["name"]) == ("COMPLETED", "Nothing new")
    assert "nothing new" in state["message"]
    assert service.stages(run) == {}


def test_a_misspelt_field_is_refused_before_a_run_exists(service: Service) -> None:
    before = service.client.post("flow_runs/count").json()
    wrong = f"overrides={as_json({'pretrain.lerning_rate': 1})}"
    done = service.prefect("deployment", "run", "full-pipeline/demo", "-p", wrong)
    assert done.returncode != 0
    assert "pretrain.lerning_rate" in done.stdout + done.stderr
    assert service.client.post("flow_runs/count").json() == before


def test_the_schedule_is_paused_until_it_is_resumed(service: Service) -> None:
    def deployment() -> Mapping[str, object]:
        return service.client.get("deployments/name/retrain/nightly").json()

    def planned() -> int:
        asked = {
            "deployments": {"name": {"any_": ["nightly"]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        }
        return len(service.client.post("flow_runs/filter", json=asked).json())

    found = deployment()
    assert [each["active"] for each in found["schedules"]] == [False]
    assert found["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    assert found["global_concurrency_limit"]["limit"] == 1
    assert planned() == 0
    assert service.prefect("deployment", "schedule", "resume", "--all").returncode == 0
    service.wait(lambda: planned() > 0, 300)
    assert service.prefect("deployment", "schedule", "pause", "--all").returncode == 0
    service.wait(lambda: planned() == 0, 300)


def test_the_server_answers_nobody_without_the_password(service: Service) -> None:
    with httpx.Client(base_url=f"{service.url}/api/", timeout=60, trust_env=False) as stranger:
        assert stranger.post("flow_runs/filter", json={}).status_code == 401


def test_a_killed_worker_loses_its_run_and_the_next_one_resumes(
    service: Service,
    made: tuple[list[str], list[subprocess.Popen[bytes]]],
    tiny: Mapping[str, object],
    tmp_path: Path,
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(service.store, copy)
    # Heartbeats come every 30 seconds, so this is the shortest silence that means anything.
    service.lost_after(45)
    told = {
        "overrides": {**tiny, "pretrain.learning_rate": 0.0007},
        "settings": {"store": str(copy)},
    }
    lost = service.submit("full-pipeline/demo", **told)
    service.wait(lambda: service.stages(lost).get("pretrain") == "Running", 900)
    for worker in made[1]:
        kill_group(worker)
    made[1][:] = [service.worker()]
    run = service.submit("full-pipeline/demo", **told)
    assert service.finished(run)["type"] == "COMPLETED"
    stages = service.stages(run)
    assert stages["features"] == stages["examples"] == "Cached"
    assert stages["pretrain"] == stages["publish"] == "Completed"
    assert service.finished(lost)["type"] == "CRASHED"
