"""The training loop: exact resume after kill -9, a stop on NaN, several processes, what is seen."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

from model.language import add_lora, load_language_model, merge_lora
from model.projectors import SparseMixtureConfig
from pipeline.errors import PipelineError
from pipeline.stage import StageContext
from tests.unit.training_inputs import (
    SCHEDULED,
    Choices,
    context_of,
    figures,
    pretrained,
    run_in_process,
    spoil,
    write_inputs,
)

pytestmark = pytest.mark.timeout(600)
# Forked from one process that has imported everything, so that a case costs no second import.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pipeline.pretrain", "pipeline.finetune"])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    pretrained(root, tmp_path_factory.mktemp("pretraining"))
    return root


def process(inputs: Path, work: Path, choices: Choices, stop: int = 0) -> None:
    """Run a stage in a process of its own; with `stop`, kill it right after that step."""
    here, there = PROCESSES.Pipe()
    running = PROCESSES.Process(
        target=run_in_process, args=(str(inputs), str(work), choices, stop, there)
    )
    running.start()
    there.close()
    assert here.poll(300)
    assert here.recv() == (stop or "done")
    if stop:
        assert running.pid is not None
        os.kill(running.pid, signal.SIGKILL)
    running.join()
    assert running.exitcode == (-signal.SIGKILL if stop else 0)


def last_checkpoint(work: Path) -> dict[str, Any]:
    return torch.load(work / "scratch/checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "choices",
    [
        Choices(),
        Choices(objective=SCHEDULED),
        Choices(stage="finetune"),
        Choices(stage="finetune", method="lora", objective=SCHEDULED),
    ],
    ids=lambda c: f"{c.stage}-{c.method}-{c.objective.kind}",
)
def test_ten_steps_kill_and_ten_more_are_twenty_bit_for_bit(
    inputs: Path, tmp_path: Path, choices: Choices
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    process(inputs, straight, choices)
    process(inputs, broken, choices, stop=13)  # the last checkpoint is that of step 10
    assert last_checkpoint(broken)["global_step"] == 10
    assert not (broken / "out/training.parquet").exists()
    process(inputs, broken, choices)
    files = [path.relative_to(straight) for path in (straight / "out").rglob("*.*")]
    assert len(files) >= 3
    for name in files:
        assert (straight / name).read_bytes() == (broken / name).read_bytes(), name
    ends = [last_checkpoint(work) for work in (straight, broken)]
    assert ends[0]["global_step"] == 20
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(ends[0][key], ends[1][key], rtol=0, atol=0)


def test_a_loss_that_is_no_number_stops_the_training_and_names_the_examples(
    tmp_path: Path,
) -> None:
    root = tmp_path / "inputs"
    write_inputs(root, spoilt=5)
    pretrained(root, tmp_path / "pretraining")
    spoil(root)
    context = context_of(root, tmp_path / "work")
    with pytest.raises(PipelineError, match=r"not finite at step \d+ .* examples") as caught:
        Choices(stage="finetune").run(context)
    (path,) = context.scratch.glob("not-finite-*.json")
    assert str(path) in str(caught.value)
    found = json.loads(path.read_text())
    assert 17 in found["example_ids"]  # the conversation about picture 5
    assert len(found["example_ids"]) <= 8  # of its forward pass only
    assert all(str(example) in str(caught.value) for example in found["example_ids"])
    assert "nan" in found["losses"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_lose_what_one_process_loses(
    inputs: Path, tmp_path: Path, strategy: str
) -> None:
    choices = Choices(stage="finetune", epochs=2.0)
    one = context_of(inputs, tmp_path / "one")
    two = context_of(inputs, tmp_path / "two", devices=2, strategy=strategy)
    assert choices.run(one)["steps"] == choices.run(two)["steps"]
    alone, together = figures(one), figures(two)
    assert alone.keys() == together.keys()
    for name, values in alone.items():
        assert together[name] == pytest.approx(values, rel=2e-4), name
    ours, theirs = (last_checkpoint(context.scratch.parent)["state_dict"] for context in (one, two))
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        # A key's bias cancels in the softmax: its gradient is rounding, which Adam enlarges.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(theirs[name], weights, rtol=1e-3, atol=1e-4, msg=name)


def test_the_figures_show_loss_rates_gradient_experts_and_validation(
    inputs: Path, tmp_path: Path
) -> None:
    projector = SparseMixtureConfig(
        reducer="none", tokens=4, experts=3, layers=1, active=2, balance_weight=0.01
    )
    context = context_of(inputs, tmp_path, wandb="offline")
    Choices(projector=projector, epochs=3.0).run(context)
    found = figures(context)
    assert set(found) == {
        "loss",
        "gradient_norm",
        "learning_rate_projector",
        "val_nll",
        *(f"expert_{number}_usage" for number in range(3)),
    }
    shares = zip(*(found[f"expert_{number}_usage"] for number in range(3)), strict=True)
    assert [sum(each) for each in shares] == pytest.approx([1.0] * len(found["loss"]))
    assert_watched(context)


def assert_watched(context: StageContext) -> None:
    """wandb has the table of held-out pictures, under the id that a resume would take up."""
    assert wandb.run is None
    folder = context.settings.work / "wandb/wandb"
    (run,) = [path for path in folder.iterdir() if path.name.startswith("offline-run")]
    assert run.name.endswith(f"-{context.scratch.parent.name}")
    tables = sorted((run / "files/media/table").glob("held_out_*.table.json"))
    table = json.loads(tables[-1].read_text())
    assert table["columns"][1:] == ["picture", "prompt", "people wrote", "the model writes"]
    assert len(table["data"]) == 5
    assert all(row[3].startswith("w") for row in table["data"])


def test_adapters_learn_in_float32_before_a_frozen_half_precision_model(inputs: Path) -> None:
    model = load_language_model(inputs / "backbones/lm", torch.bfloat16)
    add_lora(model, rank=2, alpha=4, dropout=0.0, targets=("q_proj", "fc1"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    ids = torch.ones(1, 3, dtype=torch.long)
    model(input_ids=ids).logits.float().sum().backward()
    merge_lora(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(input_ids=ids).logits.isfinite().all()
