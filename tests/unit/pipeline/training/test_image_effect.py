"""What pretraining must have learned to see before finetuning starts."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.recipe.parts import FinetunePart, PretrainPart
from pipeline.training.finetune import finetune
from pipeline.training.image_effect import (
    FILE,
    ImageEffect,
    measure_effect,
    refuse_blind,
    write_effect,
)
from pipeline.training.pretrain import prepare
from tests.support.training_inputs import Choices, context_of


class Kept:
    """Stands where an artifact is read: a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name


def kept(folder: Path, own: float, other: float, images: int = 200) -> Kept:
    write_effect(ImageEffect(own, other, images), folder)
    return Kept(folder)


def test_pretraining_that_sees_nothing_stops_the_run_with_the_figures(tmp_path: Path) -> None:
    blind = kept(tmp_path, 3.077, 3.076)
    with pytest.raises(PipelineError) as told:
        refuse_blind(blind, 0.02)  # ty: ignore[invalid-argument-type]
    assert "held-out captions have 3.077 nats per token with their own image and 3.076" in str(
        told.value
    )
    assert "200 images; finetune.least_image_gain asks for 0.02" in str(told.value)
    refuse_blind(blind, 0.0)  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize(("own", "other", "images"), [(3.1, 3.3, 200), (3.0, 3.0, 0)])
def test_what_sees_or_cannot_be_measured_goes_on(
    tmp_path: Path, own: float, other: float, images: int
) -> None:
    refuse_blind(kept(tmp_path, own, other, images), 0.02)  # ty: ignore[invalid-argument-type]


def test_the_stages_measure_it_and_heed_it(inputs: Path, tmp_path: Path) -> None:
    found = json.loads((inputs / "pretrain" / FILE).read_text())
    assert found["own"] > 0
    assert found["images"] > 1
    context = context_of(inputs, tmp_path)
    part = Choices("finetune", epochs=1.0).part()
    assert isinstance(part, FinetunePart)
    asked = part.model_copy(update={"least_image_gain": 100.0})
    with pytest.raises(PipelineError, match="pretraining left the image without effect"):
        finetune(context, asked, 3)
    assert not list(context.out.iterdir())


def test_an_image_that_is_ignored_is_worth_nothing(inputs: Path, tmp_path: Path) -> None:
    context = context_of(inputs, tmp_path)
    part = Choices().part()
    assert isinstance(part, PretrainPart)
    training = prepare(context, part, 3)
    with torch.no_grad():
        for parameter in training.vlm.vision_prefix.projector.parameters():
            parameter.zero_()
    effect = measure_effect(training.vlm, training.validation, 4, "cpu", half=False)
    assert effect.gain == 0.0
    assert effect.own == pytest.approx(effect.other)


def test_how_rows_are_batched_makes_no_difference(inputs: Path, tmp_path: Path) -> None:
    context = context_of(inputs, tmp_path)
    part = Choices().part()
    assert isinstance(part, PretrainPart)
    training = prepare(context, part, 3)
    found = [
        measure_effect(training.vlm, training.validation, size, "cpu", half=False)
        for size in (1, 3, 50)
    ]
    assert found[0] == pytest.approx(found[1], abs=2e-4)
    assert found[0] == pytest.approx(found[2], abs=2e-4)
    assert found[0].gain != 0
