"""The training loop: exact resume after kill -9, a stop on NaN, several processes, what is seen."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import wandb
from safetensors.torch import load_file
from transformers.models.phi.modeling_phi import PhiAttention

from model.augmentation_configs import AugmentationConfig
from model.bundle import PREFIX
from model.language import add_lora, load_language_model, merge_lora
from model.projectors import SparseMixtureConfig
from pipeline.engine.stage import StageContext
from pipeline.errors import PipelineError
from pipeline.recipe.parts import FinetunePart
from pipeline.training.assemble import load_pretrained
from pipeline.training.finetune import prepare
from storage.tables import read_table
from tests.support.training_inputs import (
    NO_AUGMENTATION,
    SCHEDULED,
    Choices,
    context_of,
    figures,
    files_of,
    last_checkpoint,
    pretrained,
    run_stage,
    spoil,
    write_inputs,
)

pytestmark = pytest.mark.timeout(600)
VARIED = AugmentationConfig(mirrored=0.5, dropped=0.2)


@pytest.mark.parametrize(
    "choices",
    [
        Choices(),
        Choices(objective=SCHEDULED),
        Choices(stage="finetune", augment=VARIED),
        Choices(stage="finetune", method="lora", objective=SCHEDULED),
    ],
    ids=lambda c: f"{c.stage}-{c.method}-{c.objective.kind}",
)
def test_ten_steps_kill_and_ten_more_are_twenty_bit_for_bit(
    inputs: Path, tmp_path: Path, choices: Choices
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_stage(inputs, straight, choices)
    run_stage(inputs, broken, choices, stop=13)  # the last checkpoint is that of step 10
    assert last_checkpoint(broken)["global_step"] == 10
    assert not (broken / "out/training.parquet").exists()
    run_stage(inputs, broken, choices)
    files = [path.relative_to(straight) for path in (straight / "out").rglob("*.*")]
    assert len(files) >= 3
    for name in files:
        assert (straight / name).read_bytes() == (broken / name).read_bytes(), name
    ends = [last_checkpoint(work) for work in (straight, broken)]
    assert ends[0]["global_step"] == 20
    assert ends[0]["lr_schedulers"] == ends[1]["lr_schedulers"]
    torch.testing.assert_close(ends[0]["state_dict"], ends[1]["state_dict"], rtol=0, atol=0)
    ours, theirs = (end["optimizer_states"][0] for end in ends)
    assert ours["param_groups"] == theirs["param_groups"]
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_bit_that_flips_in_a_checkpoint_lets_the_training_start_over(
    inputs: Path, tmp_path: Path, name: str
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_stage(inputs, straight, Choices())
    run_stage(inputs, broken, Choices(), stop=13)
    path = broken / f"scratch/checkpoints/{name}.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    run_stage(inputs, broken, Choices())
    files = [path.relative_to(straight) for path in (straight / "out").rglob("*.*")]
    assert len(files) >= 3
    for written in files:
        assert (straight / written).read_bytes() == (broken / written).read_bytes()


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_kept_weights_are_the_best_or_the_last(
    tmp_path: Path, keep: Literal["best", "last"]
) -> None:
    root = tmp_path / "inputs"
    write_inputs(root)
    pretrained(root, tmp_path / "pretraining")
    context = context_of(root, tmp_path)
    # So many epochs at so high a rate that the held-out loss rises again.
    summary = Choices(stage="finetune", epochs=16.0, rate=0.1, keep=keep).run(context)
    rows = read_table(context.out / "training.parquet").to_pylist()
    losses = [row["value"] for row in rows if row["metric"] == "val_nll"]
    assert min(losses) < losses[-1]
    assert summary["val_nll"] == round(min(losses) if keep == "best" else losses[-1], 4)
    kept = torch.load(tmp_path / f"scratch/checkpoints/{keep}.ckpt", weights_only=True)
    written = load_file(context.out / PREFIX)
    trained = {k: v for k, v in kept["state_dict"].items() if k.startswith("vlm.vision_prefix.")}
    assert trained
    for name, value in trained.items():
        assert torch.equal(value, written[name.removeprefix("vlm.vision_prefix.")]), name


def test_varied_images_change_what_is_learned_and_not_how_it_is_judged(
    inputs: Path, tmp_path: Path
) -> None:
    found = []
    for name, augment in (("plain", NO_AUGMENTATION), ("varied", VARIED)):
        context = context_of(inputs, tmp_path / name)
        Choices(epochs=1.0, augment=augment).run(context)
        found.append(figures(context))
    plain, varied = found
    assert plain["loss"] != varied["loss"]
    assert varied["val_nll"] == pytest.approx(plain["val_nll"], rel=0.2)


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
    assert 17 in found["example_ids"]  # the conversation about image 5
    assert len(found["example_ids"]) <= 8  # of its forward pass only
    assert all(str(example) in str(caught.value) for example in found["example_ids"])
    assert "nan" in found["losses"]


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


def test_held_out_images_are_captioned_while_adapters_learn_in_bf16(
    inputs: Path, tmp_path: Path
) -> None:
    context = context_of(inputs, tmp_path, wandb="offline")
    Choices("finetune", method="lora", precision="bf16", epochs=1.0).run(context)
    assert_watched(context)


def test_the_model_is_that_of_the_best_validation_though_training_went_on_to_learn(
    inputs: Path, tmp_path: Path
) -> None:
    context = context_of(inputs, tmp_path)
    choices = Choices(stage="finetune", rate=0.06, epochs=12.0)
    summary = choices.run(context)
    found = figures(context)
    rounds = found["val_nll"]
    best = rounds.index(min(rounds))
    assert 0 < best < len(rounds) - 3
    assert rounds[-1] > rounds[best] + 0.2  # what is held out gets worse
    assert found["loss"][-1] < found["loss"][0] / 2  # while what is trained on gets better
    vlm = load_pretrained(context.out / "lm", files_of(context.out)).eval()
    part = choices.part()
    assert isinstance(part, FinetunePart)
    held_out = prepare(context, part, 3).validation
    with torch.inference_mode():
        nats = torch.cat([vlm(each.batch) for each in held_out.in_order(4)])
    assert float(nats.mean()) == pytest.approx(rounds[best], rel=1e-4)
    assert summary["val_nll"] == pytest.approx(rounds[best], abs=1e-4)


def assert_watched(context: StageContext) -> None:
    """wandb has the table of held-out images, under the id that a resume would take up."""
    assert wandb.run is None
    folder = context.settings.work / "wandb/wandb"
    (run,) = [path for path in folder.iterdir() if path.name.startswith("offline-run")]
    assert run.name.endswith(f"-{context.scratch.parent.name}")
    tables = sorted((run / "files/media/table").glob("held_out_*.table.json"))
    table = json.loads(tables[-1].read_text())
    assert table["columns"][1:] == ["image", "prompt", "people wrote", "the model writes"]
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


def test_finetuning_keeps_the_centre_that_pretraining_measured(
    inputs: Path, tmp_path: Path
) -> None:
    before = load_file(inputs / "pretrain" / PREFIX)
    assert before["patch_mean"].any()
    assert before["patch_scale"] != 1
    context = context_of(inputs, tmp_path)
    Choices("finetune", epochs=1.0).run(context)
    after = load_file(context.out / PREFIX)
    for name in ("patch_mean", "patch_scale"):
        assert torch.equal(before[name], after[name])


@pytest.mark.parametrize(
    ("stage", "method"), [("pretrain", "full"), ("finetune", "lora"), ("finetune", "full")]
)
def test_gradient_checkpointing_recomputes_the_layers_of_both_trainings(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, method: str
) -> None:
    forward, graded = PhiAttention.forward, []

    def counting(self: PhiAttention, *args: Any, **named: Any) -> Any:
        graded.append(torch.is_grad_enabled())
        return forward(self, *args, **named)

    monkeypatch.setattr(PhiAttention, "forward", counting)
    calls = []
    for checkpointing in (False, True):
        graded.clear()
        choices = Choices(stage, method=method, epochs=1.0, checkpointing=checkpointing)
        choices.run(context_of(inputs, tmp_path / str(checkpointing)))
        calls.append(sum(graded))
    assert calls[1] == 2 * calls[0] > 0
