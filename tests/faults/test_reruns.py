"""Changes of the recipe: exactly what depends on them is made again, and all of it can be made."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.engine.plan import plan
from pipeline.recipe.presets import preset
from tests.faults.conftest import Pipeline, Reference, digests, opened

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
TRAINING = {"pretrain", "finetune", "evaluate", "publish"}


def made(
    pipeline: Pipeline, reference: Reference, store: Path, change: Mapping[str, object]
) -> set[str]:
    """Return the stages that a change makes again on a copy of a finished store."""
    shutil.copytree(reference.store, store)
    rows = replace(pipeline, changes={**pipeline.changes, **change}).finish(store)
    assert [row[0] for row in rows] == list(reference.seconds)
    return {row[0] for row in rows if row[1] == "made"}


def test_an_override_runs_exactly_what_depends_on_it(
    pipeline: Pipeline, reference: Reference, tmp_path: Path
) -> None:
    change = {"pretrain.learning_rate": 0.0007}
    assert made(pipeline, reference, tmp_path / "store", change) == TRAINING


def test_the_same_result_stops_the_ripple(
    pipeline: Pipeline, reference: Reference, tmp_path: Path
) -> None:
    # Nothing is above this share, so the images that come out are the same, and the conversations
    # that are rendered beside them, too. The bundle says where its images came from.
    change = {"images.max_bad_share": 0.5}
    recipe = preset("demo").override({**pipeline.changes, **change})
    assert plan(recipe, opened(reference.store))[0].status == "stale"
    remade = {"images", "conversations", "publish"}
    assert made(pipeline, reference, tmp_path / "store", change) == remade


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {
                "finetune.method": "lora",
                "finetune.lora_rank": 4,
                "finetune.lora_alpha": 8,
                "finetune.precision": "bf16",
                "finetune.gradient_checkpointing": True,
            },
            TRAINING - {"pretrain"},
        ),
        (
            {
                "pretrain.objective.kind": "scheduled_sampling",
                "pretrain.objective.decay": "inverse_sigmoid",
                "pretrain.objective.start_rate": 1.0,
                "pretrain.objective.end_rate": 0.5,
                "pretrain.objective.sharpness": 10,
                "pretrain.objective.passes": 1,
            },
            TRAINING,
        ),
        (
            {
                "finetune.micro_batch": 4,
                "pretrain.projector.kind": "sparse_mixture",
                "pretrain.projector.reducer": "linear",
                "pretrain.projector.tokens": 30,
                "pretrain.projector.experts": 4,
                "pretrain.projector.layers": 1,
                "pretrain.projector.active": 2,
                "pretrain.projector.balance_weight": 0.01,
            },
            TRAINING,
        ),
    ],
    ids=["lora", "scheduled_sampling", "sparse_mixture"],
)
def test_every_way_to_train_reaches_a_bundle(
    pipeline: Pipeline,
    reference: Reference,
    tmp_path: Path,
    change: Mapping[str, object],
    expected: set[str],
) -> None:
    assert made(pipeline, reference, tmp_path / "store", change) == expected


def test_forcing_a_stage_gives_the_same_bytes(
    pipeline: Pipeline, reference: Reference, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(reference.store, store)
    rows = pipeline.finish(store, rerun=list(reference.seconds))
    assert {row[0] for row in rows if row[1] == "made"} == set(reference.seconds)
    assert digests(opened(store)) == reference.digests
