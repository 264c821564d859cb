"""AdamW with moments in 8 bits, by one field; bitsandbytes is an extra (`phivision[qlora]`)."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.engine.devices
from model.projectors import MixtureConfig
from pipeline.costs.training import memory, trainings
from pipeline.errors import PipelineError
from pipeline.recipe.presets import preset
from tests.support.training_inputs import Choices, context_of, figures, last_checkpoint, run_stage

pytestmark = pytest.mark.timeout(600)
# Its experts are one matrix of 4,608 numbers; below 4,096, bitsandbytes keeps 32 bits.
WIDE = MixtureConfig(reducer="none", tokens=4, experts=32, layers=1, balance_weight=0.01)
IN_8_BITS = Choices(optimizer="adamw_8bit", projector=WIDE, epochs=2.5)
LEARNING = replace(IN_8_BITS, rate=3e-2, epochs=5.0)


def test_without_bitsandbytes_it_is_refused_before_anything_is_loaded(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.engine.devices, "find_spec", lambda name: None)
    for choices in (IN_8_BITS, Choices(stage="finetune", optimizer="adamw_8bit")):
        with pytest.raises(PipelineError, match=r"needs bitsandbytes[\s\S]*phivision\[qlora\]"):
            choices.run(context_of(inputs, tmp_path))


def test_fsdp_cannot_shard_it(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.engine.devices, "find_spec", lambda name: name)
    with pytest.raises(PipelineError, match="fsdp cannot shard"):
        IN_8_BITS.run(context_of(inputs, tmp_path, strategy="fsdp"))


def test_a_plan_counts_a_quarter_of_the_moments() -> None:
    plain = preset("coco")
    small = plain.override({"pretrain.optimizer": "adamw_8bit", "finetune.optimizer": "adamw_8bit"})
    for one, other in zip(trainings(plain), trainings(small), strict=True):
        before, after = memory(one), memory(other)
        assert after.optimizer / before.optimizer == pytest.approx(0.254, abs=0.001)
        assert after.total == before.total - before.optimizer + after.optimizer


# -- with bitsandbytes --------------------------------------------------------------------------


def moments(checkpoint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The optimizer's state of every weight, by its name, as bitsandbytes wraps it."""
    (states,) = checkpoint["optimizer_states"]
    return {
        name: {**state, **state.get("__bnb_optimizer_quant_state__", {})}
        for name, state in states["state"].items()
    }


def test_moments_take_8_bits_and_the_loss_falls_as_with_32(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    context = context_of(inputs, tmp_path / "small")
    LEARNING.run(context)
    kinds = {}
    for name, state in moments(last_checkpoint(tmp_path / "small")).items():
        large = state["state1"].numel() >= 4096
        kinds[large] = kinds.get(large, set()) | {state["state1"].dtype, state["state2"].dtype}
        assert state["state1"].shape == state["state2"].shape, name
    assert kinds == {True: {torch.uint8}, False: {torch.float32}}
    plain = context_of(inputs, tmp_path / "plain")
    replace(LEARNING, optimizer="adamw").run(plain)
    ours, theirs = figures(context)["val_nll"], figures(plain)["val_nll"]
    assert ours[-1] < ours[0] - 0.03
    assert ours[-1] != theirs[-1]
    assert math.isclose(ours[-1], theirs[-1], abs_tol=0.005)


def test_a_killed_training_goes_on_with_its_moments_in_8_bits(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run_stage(inputs, tmp_path / "straight", IN_8_BITS)
    run_stage(inputs, tmp_path / "broken", IN_8_BITS, stop=7)
    run_stage(inputs, tmp_path / "broken", IN_8_BITS)
    ends = [last_checkpoint(tmp_path / name) for name in ("straight", "broken")]
    torch.testing.assert_close(ends[0]["state_dict"], ends[1]["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(moments(ends[0]), moments(ends[1]), rtol=0, atol=0)
