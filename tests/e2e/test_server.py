"""The deployments on a real Prefect server with basic authentication and two workers."""

import sys
from collections.abc import Generator, Mapping

import httpx
import pytest

from pipeline.engine.dag import BY_NAME
from storage.store.artifacts import ArtifactStore
from storage.store.published import published, read_history
from tests.e2e.prefect_service import AUTH, Service, as_json
from tests.e2e.secret_search import files_with
from tests.e2e.service_story import TEST, TRAIN, Story, tell

pytestmark = [pytest.mark.e2e, pytest.mark.server, pytest.mark.timeout(3000)]

STAGES = set(BY_NAME)
TRAINING = {"pretrain", "finetune", "evaluate", "publish"}


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
def story(service: Service, tiny: Mapping[str, object]) -> Story:
    return tell(service, tiny)


def test_no_stage_is_made_twice_by_two_workers(service: Service, story: Story) -> None:
    first, second = (service.stages(run) for run in story.first)
    assert set(first) == set(second) == STAGES
    for stage in STAGES:
        assert sorted([first[stage], second[stage]]) == ["Cached", "Completed"], stage


def test_the_second_run_is_cached_in_every_stage(service: Service, story: Story) -> None:
    state = service.flow_run(story.cached)["state"]
    assert state["type"] == "COMPLETED"
    assert "nothing to do" in state["message"]
    assert service.stages(story.cached) == dict.fromkeys(STAGES, "Cached")


def test_phivision_run_appears_on_the_server(service: Service, story: Story) -> None:
    run = service.flow_run(story.own)
    assert run["deployment_id"] is None
    assert run["state_name"] == "Completed"
    assert service.stages(story.own) == dict.fromkeys(STAGES, "Cached") | {"publish": "Completed"}


def test_a_new_image_is_embedded_alone_and_training_follows(service: Service, story: Story) -> None:
    made = service.stages(story.lost) | service.stages(story.resumed)
    features = service.table(story.lost, "stage-features")
    assert service.stages(story.lost)["features"] == "Completed"
    assert (features["images"], features["embedded"]) == (str(images()), "1")
    assert {stage: made[stage] for stage in TRAINING} == dict.fromkeys(TRAINING, "Completed")


def images() -> int:
    """Return how many of the story's images can be decoded: two are broken on purpose."""
    return TRAIN + TEST + 1 - 2


def test_a_night_that_finds_another_at_work_is_skipped(service: Service, story: Story) -> None:
    assert service.flow_run(story.skipped)["state_type"] == "CANCELLED"
    assert service.stages(story.skipped) == {}


def test_a_killed_worker_loses_its_run_and_the_next_one_resumes(
    service: Service, story: Story
) -> None:
    state = service.flow_run(story.lost)["state"]
    assert (state["type"], "run again to resume" in state["message"]) == ("CRASHED", True)
    stages = service.stages(story.resumed)
    assert {stage for stage, name in stages.items() if name == "Cached"} == STAGES - TRAINING


def test_a_run_at_work_is_not_taken_for_lost_and_a_killed_one_is(
    service: Service, story: Story
) -> None:
    assert story.waiting_state == "RUNNING"
    assert service.flow_run(story.waiting)["state_type"] == "CRASHED"


def test_a_run_that_ended_long_ago_stays_as_it_ended(service: Service, story: Story) -> None:
    ended = {story.cached: "Cached", story.own: "Completed"}
    assert {run: service.flow_run(run)["state_name"] for run in ended} == ended


def test_a_night_with_nothing_new_starts_no_stage_and_publishes_what_was_not_judged(
    service: Service, story: Story
) -> None:
    state = service.flow_run(story.quiet)["state"]
    assert (state["type"], state["name"]) == ("COMPLETED", "Nothing new")
    assert "nothing new" in state["message"]
    assert "; published" in state["message"]
    assert service.stages(story.quiet) == {}
    store = ArtifactStore(str(service.store), service.folder / "cache")
    now = published(read_history(store))
    assert now is not None
    assert now.run in state["message"] or "anyway" in state["message"]


def test_the_window_tells_the_plan_each_stage_the_scores_and_the_report(
    service: Service, story: Story
) -> None:
    shown = service.artifacts(story.resumed)
    assert {"plan", "run", "report"} <= set(shown)
    assert {f"stage-{stage}" for stage in STAGES} <= set(shown)
    assert "pretrain" in str(shown["plan"]["data"])
    for title in ("## Held-out scores", "## Held-out captions", "![](data:image/jpeg;base64,"):
        assert title in shown["run"]["data"]
    assert shown["report"]["data"].startswith("# Report of run ")
    assert "| finetune | cider_d |" in shown["report"]["data"]
    lines = service.logs_of(story.resumed)
    assert any(line.startswith("pretrain: ") for line in lines)
    assert any(line.startswith("finetune ") and " made " in line for line in lines)


SLOW = """
import time
from prefect import flow, task
from flows.runner.reporter import PrefectReporter

@task
def slow():
    with PrefectReporter("pretrain").track("train", 8) as tick:
        for _ in range(8):
            time.sleep(1)
            tick()

@flow(name="slow")
def slow_flow():
    slow()

slow_flow()
"""


def test_work_that_takes_a_while_shows_a_bar_that_ends_full(service: Service) -> None:
    done = service.run(sys.executable, "-c", SLOW)
    assert done.returncode == 0, done.stderr
    (bar,) = service.asked("artifacts", {"flows": {"name": {"any_": ["slow"]}}})
    assert (bar["type"], bar["key"], bar["data"]) == ("progress", "pretrain-progress", 100)


def test_a_wrong_value_is_refused_before_a_run_exists(service: Service) -> None:
    before = service.client.post("flow_runs/count").json()
    wrong = f"overrides={as_json({'pretrain.learning_rate': -1})}"
    done = service.prefect("deployment", "run", "full-pipeline/demo", "-p", wrong)
    assert done.returncode != 0
    assert "pretrain.learning_rate" in done.stdout + done.stderr
    assert service.client.post("flow_runs/count").json() == before


def test_a_misspelt_field_is_told_with_the_nearest_one(service: Service, story: Story) -> None:
    state = service.flow_run(story.misspelt)["state"]
    assert state["type"] == "FAILED"
    assert "pretrain.lerning_rate" in state["message"]
    assert "pretrain.learning_rate" in state["message"]
    assert service.stages(story.misspelt) == {}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("full-pipeline/demo", "presett"),
        ("full-pipeline/coco", "presett"),
        ("retrain/nightly", "presett"),
        ("retrain/nightly", "rerun"),
    ],
)
def test_a_misspelt_parameter_is_refused_before_a_run_exists(
    service: Service, name: str, wrong: str
) -> None:
    before = service.client.post("flow_runs/count").json()
    found = service.answer("GET", f"deployments/name/{name}")
    told = {"parameters": {wrong: "coco"}}
    answer = service.client.post(f"deployments/{found['id']}/create_flow_run", json=told)
    assert answer.status_code == 409
    assert wrong in answer.json()["detail"]
    assert service.client.post("flow_runs/count").json() == before


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("full-pipeline/demo", {}),
        ("full-pipeline/demo", {"preset": "coco", "overrides": {"seed": 1}, "rerun": ["publish"]}),
        ("full-pipeline/coco", {"settings": {"device": "cpu"}}),
        ("retrain/nightly", {}),
        ("retrain/nightly", {"preset": "coco", "overrides": {}, "settings": {"device": "cpu"}}),
    ],
)
def test_a_deployment_takes_every_parameter_of_its_flow(
    service: Service, name: str, told: dict[str, object]
) -> None:
    run = service.submit(name, **told)
    assert service.flow_run(run)["parameters"].items() >= told.items()
    # The story may not have been told yet, and its workers would take this run.
    assert service.client.delete(f"flow_runs/{run}").status_code == 204


@pytest.mark.usefixtures("story")
def test_the_schedule_is_paused_until_it_is_resumed(service: Service) -> None:
    def planned() -> int:
        asked = {
            "deployments": {"name": {"any_": ["nightly"]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        }
        return len(service.asked("flow_runs", asked))

    found = service.client.get("deployments/name/retrain/nightly").json()
    assert [each["active"] for each in found["schedules"]] == [False]
    assert found["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    assert found["global_concurrency_limit"]["limit"] == 1
    assert planned() == 0
    # Prefect's commands for this are run by test_deployments_page.py.
    schedule = f"deployments/{found['id']}/schedules/{found['schedules'][0]['id']}"
    assert service.client.patch(schedule, json={"active": True}).is_success
    service.wait(lambda: planned() > 0, 300)
    assert service.client.patch(schedule, json={"active": False}).is_success
    service.wait(lambda: planned() == 0, 300)


@pytest.mark.usefixtures("story")
def test_deploying_for_another_pool_names_it_and_keeps_it_as_it_is(service: Service) -> None:
    pool = {"name": "elsewhere", "type": "process", "concurrency_limit": 7}
    assert service.client.post("work_pools/", json=pool).status_code == 201
    service.deploy("elsewhere")
    for name in ("full-pipeline/demo", "full-pipeline/coco", "retrain/nightly"):
        found = service.client.get(f"deployments/name/{name}").json()
        assert found["work_pool_name"] == "elsewhere"
        assert found["job_variables"]["env"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    assert service.client.get("work_pools/elsewhere").json()["concurrency_limit"] == 7


def test_the_server_answers_nobody_without_the_password(service: Service) -> None:
    with httpx.Client(base_url=f"{service.url}/api/", timeout=60, trust_env=False) as stranger:
        assert stranger.post("flow_runs/filter", json={}).status_code == 401


@pytest.mark.parametrize(
    ("origin", "allowed"), [("http://127.0.0.1:{port}", True), ("https://elsewhere.example", False)]
)
def test_pages_of_other_sites_are_not_allowed_to_ask(
    service: Service, origin: str, allowed: bool
) -> None:
    asked = {
        "Origin": origin.format(port=service.port),
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = service.client.options("deployments/filter", headers=asked)
    assert ("access-control-allow-origin" in answer.headers) is allowed


def test_without_the_password_phivision_says_which_variable_is_missing(service: Service) -> None:
    done = service.phivision("run", PREFECT_API_AUTH_STRING="")
    assert done.returncode == 1
    assert "PREFECT_API_AUTH_STRING" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("story")
def test_the_password_is_written_nowhere(service: Service) -> None:
    secret = {"password": AUTH.partition(":")[2]}
    assert any(service.folder.rglob("*.db"))
    assert files_with([service.folder], secret) == {}
