"""What happens to a service in its first days, told once; `test_server.py` looks at what it left.

Two people start the same run, somebody runs it again, an image is added, the night notices, its
machine dies, the next night goes on, and one run only waits all the while.
"""

import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.datasets.shapes.rendering import render_coco, render_conversations
from pipeline.engine.dag import BY_NAME
from pipeline.engine.materialize import payload_of
from pipeline.recipe.presets import preset
from storage.store.artifacts import ArtifactStore
from storage.store.leases import lease
from storage.store.manifest import fingerprint_of
from storage.store.published import published, read_history
from tests.conftest import assignments
from tests.e2e.prefect_service import Service, as_json, freeze, kill_group

TRAIN, TEST = 60, 12
SILENCE = 60  # seconds until a silent run counts as lost; heartbeats come every 30


@dataclass
class Story:
    """Ids of the flow runs, by what they were, and what was seen in between.

    Attributes:
        first: Two runs of the same recipe at the same time.
        cached: The same once more, from Prefect's command line.
        own: `phivision run` with PREFECT_API_URL, where one stage was to be made again.
        lost: The nightly retraining after an image was added; its machine died.
        skipped: A night that found that one still at work.
        resumed: The night after.
        quiet: A night with nothing new, after which something is published again.
        waiting: A run that waited for a lock and did nothing else, until it was killed.
        misspelt: A run with a field that the recipe does not have.
        waiting_state: Its state after it had been at work for longer than the silence allowed.
    """

    first: list[str]
    cached: str = ""
    own: str = ""
    lost: str = ""
    skipped: str = ""
    resumed: str = ""
    quiet: str = ""
    waiting: str = ""
    misspelt: str = ""
    waiting_state: str = ""


def tell(service: Service, tiny: Mapping[str, object]) -> Story:
    """Live through all of it, on a server that has its deployments, with two workers."""
    data = service.folder / "data"
    render(data, TEST)
    told = {"overrides": recipe_of(data, tiny)}
    service.lost_after(SILENCE)
    with waiting_run(service, tiny) as waits:
        since = time.monotonic()
        workers = [service.worker(), service.worker()]
        story = Story([service.submit("full-pipeline/demo", **told) for _ in workers])
        for run in story.first:
            done(service, run)
        story.waiting = only_running(service)
        wrong = {"pretrain.lerning_rate": 1}
        story.misspelt = service.submit("full-pipeline/demo", overrides=wrong)
        service.finished(story.misspelt)
        story.cached = by_prefect(service, told["overrides"])
        story.own = by_phivision(service, told["overrides"])
        service.wait(lambda: time.monotonic() - since > SILENCE + 40, 120)
        story.waiting_state = service.flow_run(story.waiting)["state_type"]
        render(data, TEST + 1)
        story.lost = service.submit("retrain/nightly", **told)
        service.wait(lambda: service.stages(story.lost).get("pretrain") == "Running", 300)
        for worker in workers:
            freeze(worker)  # so that the run is still there when the next night comes
        story.skipped = service.submit("retrain/nightly", **told)
        assert service.finished(story.skipped)["type"] == "CANCELLED"
        for process in (*workers, waits):
            kill_group(process)
    worker = service.worker()
    for run in (story.lost, story.waiting):
        service.finished(run, 300)
    story.resumed = done(service, service.submit("retrain/nightly", **told))
    forget_the_verdict(service.store)
    story.quiet = done(service, service.submit("retrain/nightly", **told))
    kill_group(worker)
    return story


def render(data: Path, images: int) -> None:
    """Write a dataset in COCO's layout with so many test images, the first of them the same."""
    counts: Any = {"seed": 0, "train_images": TRAIN, "advance": lambda _: None}
    render_coco(data, val_images=images, **counts)
    if not (data / "talk.json").exists():
        render_conversations(data / "talk.json", val_images=images, **counts)


def recipe_of(data: Path, tiny: Mapping[str, object]) -> dict[str, object]:
    """Return what makes the demo recipe read these images, and train long enough to show it."""
    return {
        **{key: value for key, value in tiny.items() if not key.startswith("images.source.")},
        "images.source.kind": "folder",
        "images.source.root": str(data),
        "conversations.source.kind": "file",
        "conversations.source.path": str(data / "talk.json"),
        "conversations.source.sha256": None,
        "pretrain.epochs": 12,
    }


def done(service: Service, run: str) -> str:
    """Wait for a run that must end well, and return it."""
    state = service.finished(run)
    assert state["type"] == "COMPLETED", f"{state['message']}\n{service.logs()}"
    return run


def by_prefect(service: Service, overrides: Mapping[str, object]) -> str:
    """Start a run as a person does who has Prefect's command line."""
    given = ("-p", f"overrides={as_json(overrides)}", "--watch")
    ended = service.prefect("deployment", "run", "full-pipeline/demo", *given)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.partition("UUID:")[2].split()[0]


def by_phivision(service: Service, overrides: Mapping[str, object]) -> str:
    """Start a run as a person does who has only phivision, and return what the server calls it."""
    before = {row["id"] for row in service.runs()}
    changes = {key: as_json(value) for key, value in overrides.items()}
    ended = service.phivision("run", "--rerun", "publish", *assignments(changes))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (run,) = {row["id"] for row in service.runs()} - before
    return run


@contextmanager
def waiting_run(service: Service, tiny: Mapping[str, object]) -> Generator[subprocess.Popen[bytes]]:
    """Start a run that costs nothing: another process, which is this one, holds its first stage."""
    folder = service.folder / "waiting"
    recipe = preset("demo").override(tiny)
    fingerprint = fingerprint_of(payload_of(BY_NAME["images"], recipe, {}))
    key, store = f"images-{fingerprint[:16]}", ArtifactStore(str(folder), folder / "cache")
    with lease(store, folder / "work" / "locks", key, say=print):
        arguments = ("run", "--store", str(folder), *assignments(tiny))
        yield service.start_phivision(*arguments)


def only_running(service: Service) -> str:
    """Return the one run that is at work now."""
    (run,) = [row["id"] for row in service.runs() if row["state_type"] == "RUNNING"]
    return run


def forget_the_verdict(folder: Path) -> None:
    """Leave a store as a run does that dies between its last stage and the gate."""
    store = ArtifactStore(str(folder), folder / "work" / "cache")
    for name in [*store.list("published"), *store.list("runs"), "refs/latest"]:
        store.files.remove(name)
    assert published(read_history(store)) is None
