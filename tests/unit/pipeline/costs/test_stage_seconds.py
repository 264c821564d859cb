"""What stale stages are expected to take: from manifests written by hand, with round numbers."""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.costs.stage_seconds import Forecast, forecast, seconds_for
from pipeline.costs.stage_work import counts_of, scaled_counts, work_of
from pipeline.engine.code_identity import code_digests
from pipeline.engine.dag import DAG
from pipeline.engine.plan import FORCED, Step, plan
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.commits import Provenance, commit
from storage.store.manifest import Manifest, fingerprint_of

CPU = {"device": "cpu", "threads": "2"}
DEMO = preset("demo")
TOOK = {
    "images": 5.0,
    "conversations": 1.0,
    "backbones": 54.0,
    "features": 10.0,
    "examples": 3.0,
    "pretrain": 21.5,
    "finetune": 180.0,
    "evaluate": 20.0,
    "publish": 0.1,
}
FOUR = {"images.source.train": 18000, "images.source.test": 1000}
Remember = Callable[..., dict[str, Manifest]]


def summaries(images: int) -> dict[str, dict[str, Any]]:
    """Return what the stages say about the demo with so many images, a twentieth of them tests."""
    test, held = images // 20, images // 25
    splits = {"train": images - test - held, "validation": held, "test": test}
    captions = {f"{split}_captions": 5 * n for split, n in splits.items()}
    spoken = {f"{split}_conversations": 4 * n for split, n in splits.items()}
    return {
        "images": {"images": images},
        "conversations": {"conversations": 4 * images, "turns": 8 * images},
        "features": {"images": images, "embedded": images},
        "examples": {"examples": 9 * images, **captions, **spoken},
    }


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")


@pytest.fixture
def remember(store: ArtifactStore, tmp_path: Path) -> Remember:
    """Write the manifests of a run that took so long."""
    number = itertools.count()

    def write(
        recipe: Recipe = DEMO,
        took: Mapping[str, float] = TOOK,
        images: int = 4750,
        machine: Mapping[str, str] = CPU,
        figures: Mapping[str, Mapping[str, Any]] | None = None,
        until: str = "publish",
    ) -> dict[str, Manifest]:
        made: dict[str, Manifest] = {}
        told = {**summaries(images), **(figures or {})}
        for stage in DAG:
            out = tmp_path / f"out-{next(number)}"
            out.mkdir()
            (out / "file").write_text(f"{stage.name} {out.name}")
            payload = {
                "stage": stage.name,
                "recipe": json.loads(
                    json.dumps(
                        {
                            part: value.model_dump(mode="json")
                            for part, value in stage.arguments(recipe).items()
                            if part != "seed"
                        }
                    )
                ),
                # The model's own code, beside a file that makes every artifact another one.
                "code": {
                    **{
                        path: digest
                        for path, digest in code_digests(stage.module, stage.name).items()
                        if path.startswith("model/")
                    },
                    "run.py": hashlib.sha256(out.name.encode()).hexdigest(),
                },
                "inputs": {name: made[name].digest for name in stage.inputs_with(recipe)},
                "source": {},
            }
            computed = stage.name not in ("images", "conversations")
            provenance = Provenance(
                summary=told.get(stage.name, {}),
                packages={},
                commit="",
                seconds=took[stage.name],
                machine=dict(machine) if computed else {},
            )
            made[stage.name] = commit(
                store, out, payload, fingerprint_of(payload), provenance, warn=print
            )
            if stage.name == until:
                break
        return made

    return write


def expected(
    store: ArtifactStore, changes: Mapping[str, object], settings: Settings | None = None
) -> Forecast:
    """Return the forecast where every stage has to be made again."""
    recipe = DEMO.override(changes)
    stages = [stage.name for stage in DAG]
    steps = plan(recipe, store, stages)
    return forecast(recipe, store, steps, settings or Settings(store=store.uri))


def test_the_same_run_is_expected_to_take_what_it_took(
    store: ArtifactStore, remember: Remember
) -> None:
    remember()
    found = expected(store, {})
    assert found.seconds == pytest.approx(TOOK)
    assert found.total == pytest.approx(sum(TOOK.values()))
    assert (found.machine, found.unknown) == (CPU, [])


def test_four_times_the_data_takes_four_times_but_for_what_does_not_grow(
    store: ArtifactStore, remember: Remember
) -> None:
    remember()
    found = expected(store, FOUR).seconds
    assert found["images"] == pytest.approx(4 * 5, rel=0.01)
    assert found["conversations"] == pytest.approx(4 * 1, rel=0.01)
    assert found["features"] == pytest.approx(4 * 10, rel=0.01)
    assert found["backbones"] == pytest.approx(4 + 4 * 50, rel=0.01)  # it imports torch
    assert found["publish"] == pytest.approx(0.1)
    assert found["evaluate"] == pytest.approx(20, rel=0.05)  # the recipe asks no more questions
    # Four times the validations, each of four times the examples, besides four times the steps.
    assert found["finetune"] is not None
    assert 4 * 180 < found["finetune"] < 1.3 * 4 * 180


def test_epochs_count_and_a_learning_rate_does_not(
    store: ArtifactStore, remember: Remember
) -> None:
    remember()
    assert expected(store, {"finetune.learning_rate": 1e-3}).seconds["finetune"] == 180
    longer = expected(store, {"finetune.epochs": 12}).seconds
    assert longer["finetune"] == pytest.approx(2 * 180, rel=0.02)
    assert longer["pretrain"] == 21.5


@pytest.mark.parametrize(
    ("change", "unknown"),
    [
        ({"finetune.method": "lora"}, ["finetune"]),
        ({"finetune.batch": 8, "finetune.micro_batch": 8}, ["finetune"]),
        ({"evaluate.beams": 2}, ["evaluate"]),
        ({"pretrain.projector.layers": 3}, ["pretrain", "finetune", "evaluate"]),
        ({"backbones.lm_layers": 3}, [*TOOK][2:4] + [*TOOK][5:]),
    ],
)
def test_a_stage_that_was_never_made_like_this_is_unknown(
    store: ArtifactStore, remember: Remember, change: dict[str, object], unknown: list[str]
) -> None:
    remember()
    assert expected(store, change).unknown == unknown


def test_a_run_without_an_example_is_no_measurement(
    store: ArtifactStore, remember: Remember
) -> None:
    remember(images=0)
    assert expected(store, {}).unknown == [*TOOK]


def test_an_empty_store_knows_nothing(store: ArtifactStore) -> None:
    found = expected(store, {})
    assert found.unknown == [*TOOK]
    assert (found.total, found.machine) == (0.0, {})


def test_only_the_same_kind_of_machine_counts(store: ArtifactStore, remember: Remember) -> None:
    remember(took={**TOOK, "finetune": 9.0}, machine={"device": "cuda", "threads": "8"})
    remember()
    assert expected(store, {}).seconds["finetune"] == 180
    gpu = expected(store, {}, Settings(store=store.uri, device="cuda"))
    assert gpu.seconds["finetune"] == 9
    assert gpu.machine["device"] == "cuda"
    one = expected(store, {}, Settings(store=store.uri, threads=1))
    assert one.unknown == [*TOOK][2:]  # images and conversations are not computed with torch


def test_two_sizes_give_a_constant_and_a_part_for_each_image(
    store: ArtifactStore, remember: Remember
) -> None:
    small = {"images.source.train": 2250, "images.source.test": 125}
    remember(DEMO.override(small), {**TOOK, "features": 12.0}, images=2375)
    remember(took={**TOOK, "features": 16.0})
    assert expected(store, FOUR).seconds["features"] == pytest.approx(8 + 4 * 8, rel=0.01)


def test_a_line_never_falls_nor_starts_below_zero() -> None:
    assert seconds_for(40, [(10, 12.0), (20, 16.0)]) == pytest.approx(8 + 40 * 0.4)
    assert seconds_for(40, [(10, 5.0), (20, 20.0)]) == pytest.approx(40 * 0.6)
    assert seconds_for(40, [(10, 30.0), (20, 20.0)]) == pytest.approx(23.077, abs=0.01)
    # Too near each other to tell the parts apart: the median of what each says.
    assert seconds_for(40, [(10, 10.0), (11, 22.0), (10, 11.0)]) == pytest.approx(44)
    assert seconds_for(40, [(10, 10.0)], constant=4) == pytest.approx(4 + 24)
    assert seconds_for(40, [(10, 3.0)], constant=4) == pytest.approx(3)
    assert seconds_for(40, [(0, 3.0)]) is None


def test_a_resumed_training_is_not_taken_for_a_short_one(
    store: ArtifactStore, remember: Remember
) -> None:
    speed = {"examples": 20000, "examples_per_second": 600.0}
    remember(took={**TOOK, "finetune": 12.0}, figures={"finetune": speed})
    assert expected(store, {}).seconds["finetune"] == pytest.approx(6 * 20000 / 600)


def test_images_that_the_encoder_knows_are_not_counted_again(
    store: ArtifactStore, remember: Remember
) -> None:
    made = remember()
    steps = [
        Step("images", "stale", "new"),
        Step("conversations", "fresh", "", made["conversations"]),
        Step("backbones", "fresh", "", made["backbones"]),
        *(Step(name, "unknown", "depends") for name in [*TOOK][3:]),
    ]
    recipe = DEMO.override({"images.source.train": 6750})
    settings = Settings(store=store.uri)
    found = forecast(recipe, store, steps, settings).seconds["features"]
    assert found == pytest.approx(10 * (6750 + 250 - 4750) / 4750, rel=0.01)
    steps[3] = Step("features", "stale", FORCED)  # reuses nothing
    found = forecast(recipe, store, steps, settings).seconds["features"]
    assert found == pytest.approx(10 * (6750 + 250) / 4750, rel=0.01)


def test_a_dataset_that_is_used_up_does_not_grow_with_its_limit() -> None:
    folder = {"kind": "folder", "root": "photos"}
    images = {"source": folder, "limit": 100_000, "test_limit": 500, "validation_share": 0.04}
    before = {"images": images, "conversations": {"source": {"kind": "file"}}}
    counts = counts_of(summaries(10_000))
    assert counts["test_images"] == pytest.approx(500)
    more = {**before, "images": {**images, "limit": 200_000, "test_limit": 1000}}
    scaled = scaled_counts(counts, before, more)
    assert scaled["train_images"] == pytest.approx(counts["train_images"])
    assert scaled["test_images"] == pytest.approx(1000)  # its limit decided it
    assert scaled["conversations"] == counts["conversations"]
    fewer = {**before, "images": {**images, "limit": 950}}
    assert scaled_counts(counts, before, fewer)["train_captions"] == pytest.approx(4550)


def test_work_of_a_training_counts_validations_by_a_third() -> None:
    counts = counts_of(summaries(5000))
    part = {
        "pretrain": {
            "epochs": 2.0,
            "batch": 10,
            "examples_per_row": 5,
            "validate_every": 91,
            "validation_examples": 300,
        }
    }
    # 4,550 images of five captions, in rows of five, are 910 steps of ten rows in two epochs.
    assert work_of("pretrain", part, counts) == pytest.approx(2 * 4550 * 5 + 10 * 300 / 3)


def test_captions_are_drawn_once_for_two_conditions_and_once_without_an_image() -> None:
    part = {
        "features": {"patches": 49},
        "evaluate": {
            "images": 300,
            "questions": 0,
            "likelihood_images": 0,
            "pointing_images": 0,
            "caption_samples": 0,
        },
    }
    counts = counts_of(summaries(10_000))  # 500 of them are test images
    greedy = work_of("evaluate", part, counts)
    part["evaluate"]["caption_samples"] = 20
    assert work_of("evaluate", part, counts) - greedy == 20 * 301  # by the last model
