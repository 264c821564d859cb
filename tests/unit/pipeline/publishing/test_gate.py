"""The gate: what may be published, the pointer's history, rollback."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.data.schemas import PREDICTIONS
from pipeline.errors import PipelineError
from pipeline.publishing.gate import (
    baseline_fault,
    decide,
    publish_run,
    published_manifest,
    roll_back,
    status_line,
)
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest
from storage.store.published import Entry, read_history
from storage.tables import write_arrow
from tests.support.store_fixtures import add, payload

DEMO = preset("demo")


def gap_row(condition: str, low: float, metric: str = "cider_d") -> dict[str, object]:
    place = {"stage": "finetune", "split": "test", "condition": condition}
    return {**place, "metric": f"{metric}_gap", "value": low + 0.1, "low": low, "high": low + 0.2}


def finish(
    store: ArtifactStore,
    folder: Path,
    name: str,
    quality: float,
    gap: float = 0.5,
    first_image: int = 0,
    beside: Sequence[Mapping[str, object]] = (),
) -> None:
    """Write a run whose captions all score about `quality`, and whose answers use the image."""
    rows = [
        {
            "stage": "finetune",
            "condition": "real",
            "kind": "caption",
            "image_id": image,
            "question": "",
            "references": ["a cat"],
            "score": quality + 0.01 * (image % 5),
        }
        for image in range(first_image, first_image + 40)
    ]
    path = folder / f"{name}.parquet"
    write_arrow(path, pa.Table.from_pylist(rows, schema=PREDICTIONS))
    metrics = [gap_row(condition, gap) for condition in ("shuffled", "blind")]
    metrics += [gap_row(each, 0.5, "answer_accuracy") for each in ("shuffled", "blind")]
    metrics += [dict(row) for row in beside]
    files = {
        "evaluate": {
            "metrics.json": json.dumps(metrics).encode(),
            "predictions.parquet": path.read_bytes(),
        },
        "publish": {"bundle.json": name.encode()},
    }
    made: dict[str, Manifest] = {
        stage: add(store, folder, given, payload(stage, source={"run": {"name": name}}))
        for stage, given in files.items()
    }
    stages = {s: {"fingerprint": m.fingerprint, "digest": m.digest} for s, m in made.items()}
    body = {"run": name, "created": 1.0, "stages": stages, "made": [], "recipe": {}}
    store.write(f"runs/{name}.json", json.dumps(body).encode())


def bundle(store: ArtifactStore) -> str:
    return store.artifact(published_manifest(store)).path("bundle.json").read_text()


def test_a_model_that_does_not_look_is_refused_with_the_reason(
    local: ArtifactStore, tmp_path: Path
) -> None:
    finish(local, tmp_path, "blind", 1.0, gap=-0.01)
    decision = publish_run(local, DEMO, "blind")
    assert decision.action == "refused"
    assert "no evidence that the model uses the image" in status_line(decision)
    with pytest.raises(PipelineError, match="no published assistant"):
        published_manifest(local)


def test_a_worse_model_is_refused_and_an_equal_one_is_not(
    local: ArtifactStore, tmp_path: Path
) -> None:
    for name, quality in (("good", 1.0), ("worse", 0.8), ("equal", 1.0)):
        finish(local, tmp_path, name, quality)
    assert publish_run(local, DEMO, "good").action == "published"
    worse = publish_run(local, DEMO, "worse")
    assert worse.action == "refused"
    assert "below the published run good" in worse.reason
    assert bundle(local) == "good"
    assert publish_run(local, DEMO, "equal").action == "published"
    assert bundle(local) == "equal"


def test_what_was_decided_is_not_decided_again(local: ArtifactStore, tmp_path: Path) -> None:
    finish(local, tmp_path, "good", 1.0)
    finish(local, tmp_path, "worse", 0.5)
    told: list[str] = []
    for _ in range(3):
        for name in ("good", "worse"):
            publish_run(local, DEMO, name, tell=lambda _, entry: told.append(entry.action))
    assert told == ["published", "refused"]
    assert [entry.action for entry in read_history(local)] == ["refused", "published"]


def test_another_main_metric_is_another_question(local: ArtifactStore, tmp_path: Path) -> None:
    finish(local, tmp_path, "half", 1.0, gap=-0.01)
    assert publish_run(local, DEMO, "half").action == "refused"
    by_answers = DEMO.override({"publish.metric": "answer_accuracy"})
    assert publish_run(local, by_answers, "half").action == "published"


def test_scores_that_are_back_are_compared(local: ArtifactStore, tmp_path: Path) -> None:
    finish(local, tmp_path, "good", 1.0)
    publish_run(local, DEMO, "good")
    finish(local, tmp_path, "better", 1.1)
    record = local.read("runs/good.json")
    assert record is not None
    local.files.remove("runs/good.json")
    for _ in range(2):
        assert "are gone" in publish_run(local, DEMO, "better").reason
    assert len(read_history(local)) == 2
    local.write("runs/good.json", record)
    assert publish_run(local, DEMO, "better").action == "published"


def test_what_was_tested_on_other_images_is_not_compared(
    local: ArtifactStore, tmp_path: Path
) -> None:
    finish(local, tmp_path, "good", 1.0)
    finish(local, tmp_path, "elsewhere", 1.0, first_image=1000)
    publish_run(local, DEMO, "good")
    assert "on other images" in publish_run(local, DEMO, "elsewhere").reason


def test_who_comes_second_is_judged_against_what_is_published_by_then(
    local: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(local, tmp_path, "good", 1.0)
    finish(local, tmp_path, "better", 2.0)
    create = local.files.create

    def create_late(name: str, data: bytes) -> bool:
        monkeypatch.setattr(local.files, "create", create)
        publish_run(local, DEMO, "better")  # somebody else, between verdict and record
        return create(name, data)

    monkeypatch.setattr(local.files, "create", create_late)
    told: list[Entry] = []
    decision = publish_run(local, DEMO, "good", tell=lambda _, entry: told.append(entry))
    assert told == [decision]
    assert "below the published run better" in decision.reason
    assert bundle(local) == "better"
    assert [entry.action for entry in read_history(local)] == ["refused", "published"]


def test_a_run_that_is_not_to_be_published_is_not_judged(
    local: ArtifactStore, tmp_path: Path
) -> None:
    finish(local, tmp_path, "variant", 1.0)
    assert decide(local, DEMO, "variant", Settings(judge=False, publish_anyway=True)) is None
    assert read_history(local) == []


def test_publishing_anyway_is_recorded(local: ArtifactStore, tmp_path: Path) -> None:
    finish(local, tmp_path, "blind", 1.0, gap=-0.01)
    publish_run(local, DEMO, "blind")
    forced = publish_run(local, DEMO, "blind", anyway=True)
    assert forced.action == "forced"
    assert "no evidence" in forced.reason
    assert bundle(local) == "blind"


def test_rollback_goes_back_and_stays_there(local: ArtifactStore, tmp_path: Path) -> None:
    for name, quality in (("one", 1.0), ("two", 1.1), ("three", 1.2)):
        finish(local, tmp_path, name, quality)
        publish_run(local, DEMO, name)
    roll_back(local)
    assert bundle(local) == "two"
    assert publish_run(local, DEMO, "three").action == "refused"
    assert bundle(local) == "two"
    roll_back(local)
    assert bundle(local) == "one"
    with pytest.raises(PipelineError, match="nothing was published before"):
        roll_back(local)


def scored(condition: str, value: float, metric: str = "cider_d") -> dict[str, object]:
    return {"stage": "finetune", "condition": condition, "metric": metric, "value": value}


def test_a_model_below_a_caption_without_a_model_is_refused_by_that_name() -> None:
    rows = [scored("real", 0.171), scored("most_frequent", 0.05)]
    assert not baseline_fault([*rows, scored("nearest_neighbour", 0.171)], "cider_d")
    assert baseline_fault([*rows, scored("nearest_neighbour", 0.223)], "cider_d") == (
        "cider_d with the real image is 0.171, below 0.223 of the baseline nearest_neighbour: "
        "the caption of the most similar training image, which needs no model, is better"
    )
    frequent = [scored("real", 0.1), scored("most_frequent", 0.2)]
    assert "the commonest training caption" in baseline_fault(frequent, "cider_d")
    assert not baseline_fault(frequent, "answer_accuracy")
    assert not baseline_fault([{**row, "stage": "pretrain"} for row in frequent], "cider_d")


def test_a_baseline_that_is_better_keeps_a_run_from_being_published(
    local: ArtifactStore, tmp_path: Path
) -> None:
    finish(local, tmp_path, "low", 1.0, beside=(scored("real", 1.0), scored("most_frequent", 2.0)))
    refused = publish_run(local, DEMO, "low")
    assert refused.action == "refused"
    assert "below 2.000 of the baseline most_frequent" in status_line(refused)
    assert publish_run(local, DEMO, "low", anyway=True).action == "forced"
