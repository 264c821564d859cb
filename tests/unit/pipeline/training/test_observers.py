"""What is told while a model trains: speed, progress, the end that comes early, wandb's one run."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import pipeline.engine.precision
import pipeline.training.observers.throughput
from model.batch import Batch
from model.flops import size_of, training_flops
from model.objectives import standard
from model.projectors import LinearConfig, ProjectorConfig, SparseMixtureConfig
from model.shared_rows import segment_mask
from pipeline.data.stored_images import open_patches
from pipeline.engine.stage import StageContext
from pipeline.progress import Ticker
from pipeline.recipe.parts import PretrainPart
from pipeline.training.batches import TrainingBatches
from pipeline.training.collate import collate
from pipeline.training.example_sets import ExampleSet
from pipeline.training.observers.throughput import seen_pairs
from pipeline.training.pretrain import prepare, pretrain
from tests.support.training_inputs import (
    PATCHES,
    Choices,
    context_of,
    figures,
    last_checkpoint,
    run_stage,
)

pytestmark = pytest.mark.timeout(600)
PEAK = 1e9  # operations per second that the tests take a device to do
SPARSE = SparseMixtureConfig(
    reducer="none", tokens=4, experts=6, layers=1, active=2, balance_weight=0.0
)


class Recording:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.ticks: list[tuple[int, str]] = []
        self.total: int | None = None

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def track(self, label: str, total: int | None, done: int = 0) -> Generator[Ticker]:
        self.total = total
        yield lambda amount=1, note="": self.ticks.append((amount, note))


def feed_of(context: StageContext) -> TrainingBatches:
    """The batches of the tests' pretraining."""
    patches = open_patches(context.inputs["features"])
    examples = ExampleSet(context.inputs["examples"], patches, "train", {"caption": 1.0}, 3, 2)
    return TrainingBatches(examples, batch=8, micro_batch=4, seed=3)


def test_the_speed_is_that_of_all_examples_tokens_and_operations(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.training.observers.throughput, "known_peak", lambda device: PEAK)
    report = Recording()
    context = context_of(inputs, tmp_path, report)
    choices = Choices(epochs=1.75)  # 7 steps: a round of 5 and one of 2, both shorter than 10
    told = choices.run(context)
    part = choices.part()
    assert isinstance(part, PretrainPart)
    size = size_of(prepare(context, part, 3).vlm, PATCHES + 1)
    examples, tokens, operations = 0, 0, 0.0
    for step in range(told["steps"]):
        for each in feed_of(context).step(step):
            rows = len(each.batch.attention)
            examples += len(each.example_ids)
            tokens += rows * (PATCHES + 1) + each.text_tokens
            operations += training_flops(
                size, rows=rows, text_tokens=each.text_tokens, targets=each.targets, before=0
            )
    assert told["steps"] == 7
    # The clock cancels in these two.
    assert told["tokens_per_second"] / told["examples_per_second"] == pytest.approx(
        tokens / examples, rel=2e-3
    )
    assert told["mfu"] * PEAK / told["tokens_per_second"] == pytest.approx(
        operations / tokens, rel=2e-3
    )
    assert any("tokens_per_second" in line and "mfu" in line for line in report.said)
    assert not any("per_second" in name for name in figures(context))  # nothing of a clock


def visible_to_tokens(batch: Batch, prefix: int) -> torch.Tensor:
    """Which positions see which, as training's own mask says; padding sees nothing."""
    segments = torch.zeros_like(batch.input_ids) if batch.segments is None else batch.segments
    visible = segment_mask(segments[:, :-1], prefix, batch.has_image)
    return visible & functional.pad(batch.attention[:, :-1], (prefix, 0), value=True).unsqueeze(2)


@pytest.mark.parametrize("has_image", [None, [True, False, True]])
def test_pairs_that_see_each_other_are_those_of_the_mask(has_image: list[bool] | None) -> None:
    ids = [np.array(text) for text in ([5, 6, 1], [5, 6, 2, 3], [5, 7], [9, 8, 7, 6], [4, 4, 1])]
    judged = [np.array([False] * 2 + [True] * (len(text) - 2)) for text in ids]
    judged[2] = np.array([False, True])
    told = None if has_image is None else torch.tensor(has_image)
    for counts in ([2, 1, 2], [1] * 5):
        some = told if len(counts) == 3 else None
        batch = collate(torch.zeros(len(counts), 4, 2), ids, judged, counts, some)
        expected = int(visible_to_tokens(batch, 5).sum())
        assert int(seen_pairs(batch, 5)) == expected


@pytest.mark.parametrize("examples_per_row", [1, 3])
def test_the_shares_of_padding_and_of_masked_attention_are_told(
    inputs: Path, tmp_path: Path, examples_per_row: int
) -> None:
    context = context_of(inputs, tmp_path)
    choices = Choices(epochs=1.5, examples_per_row=examples_per_row)
    told = choices.run(context)
    patches = open_patches(context.inputs["features"])
    source = context.inputs["examples"]
    examples = ExampleSet(source, patches, "train", {"caption": 1.0}, 3, examples_per_row)
    batches = TrainingBatches(examples, batch=8, micro_batch=4, seed=3)
    prefix, padding, positions, hidden, pairs = PATCHES + 1, 0, 0, 0, 0
    for step in range(told["steps"]):
        for each in batches.step(step):
            batch = each.batch
            padding += int((~batch.attention).sum())
            positions += batch.attention.numel() + len(batch.attention) * prefix
            if batch.segments is not None:
                visible = visible_to_tokens(batch, prefix)
                hidden += int((~visible).sum())
                pairs += visible.numel()
    assert padding > 0
    assert told["padding_share"] == pytest.approx(padding / positions, rel=1e-3)
    assert ("masked_attention_share" in told) is (examples_per_row > 1)
    if examples_per_row > 1:
        assert told["masked_attention_share"] == pytest.approx(hidden / pairs, rel=1e-3)
        assert hidden > pairs / 2


def test_the_bar_moves_once_a_step_and_begins_where_the_checkpoint_ended(
    inputs: Path, tmp_path: Path
) -> None:
    choices = Choices(epochs=2.5)
    run_stage(inputs, tmp_path, choices, stop=7)
    report = Recording()
    choices.run(context_of(inputs, tmp_path, report))
    amounts = [amount for amount, _ in report.ticks]
    assert report.total == 10
    assert amounts == [5, 1, 1, 1, 1, 1]
    assert all("loss" in note for _, note in report.ticks[1:])
    choices.run(context_of(inputs, tmp_path / "straight", report := Recording()))
    assert [amount for amount, _ in report.ticks] == [0, *[1] * 10]
    assert ["val_nll" in note for _, note in report.ticks] == [False] * 6 + [True] * 5


@pytest.mark.parametrize("projector", [LinearConfig(), SPARSE], ids=lambda config: config.kind)
def test_counted_operations_are_those_that_torch_counts(
    inputs: Path, tmp_path: Path, projector: ProjectorConfig
) -> None:
    context = context_of(inputs, tmp_path)
    part = Choices(projector=projector).part()
    assert isinstance(part, PretrainPart)
    vlm = prepare(context, part, 3).vlm
    micro = feed_of(context).examples.micro_batch(
        feed_of(context).examples.lengths.argsort()[:1], 1
    )
    with FlopCounterMode(display=False) as counter:
        standard(vlm, micro.batch).token_nll.sum().backward()
    counted = training_flops(
        size_of(vlm, PATCHES + 1),
        rows=1,
        text_tokens=micro.text_tokens,
        targets=micro.targets,
        before=0,
    )
    # Attention is counted by what a position sees, and the last token is fed to nobody.
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_training_ends_when_validation_has_not_improved_for_some_rounds(
    inputs: Path, tmp_path: Path
) -> None:
    """A learning rate that is far too high makes the first rounds the best."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    choices = Choices(stage="finetune", epochs=20.0, rate=0.3, patience=2)
    ended = choices.run(context_of(inputs, straight))
    losses = figures(context_of(inputs, straight))["val_nll"]
    assert len(losses) - 1 - losses.index(min(losses)) == 2
    assert ended["steps"] < 80
    run_stage(inputs, broken, choices, stop=5 * len(losses) - 2)
    choices.run(context_of(inputs, broken))
    assert figures(context_of(inputs, broken)) == figures(context_of(inputs, straight))
    # Killed between the last checkpoint and the commit, it does not begin again either.
    again = Recording()
    choices.run(context_of(inputs, broken, again))
    assert sum(amount for amount, _ in again.ticks) in (0, ended["steps"])
    assert last_checkpoint(broken)["global_step"] == ended["steps"]


def test_wandb_goes_on_with_the_same_run_after_a_kill(inputs: Path, tmp_path: Path) -> None:
    choices = Choices(epochs=2.5)
    run_stage(inputs, tmp_path, choices, stop=7, wandb="offline")
    report = Recording()
    context = context_of(inputs, tmp_path, report, wandb="offline")
    choices.run(context)
    assert not any("wandb" in line for line in report.said)
    written = (context.settings.work / "wandb/wandb").glob("offline-run-*/run-*.wandb")
    # A folder is named after the second in which it was begun, and numbered where that is taken.
    folders, names = zip(*[(path.parent, path.stem) for path in written], strict=True)
    assert len(set(folders)) == 2
    assert set(names) == {f"run-{context.scratch.parent.name}"}


def test_a_training_outlives_an_image_that_wandb_cannot_keep(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has cleared the temporary folder in which wandb puts images, say."""

    def fail(image: object) -> None:
        raise FileNotFoundError("its folder is gone")

    monkeypatch.setattr(wandb, "Image", fail)
    report = Recording()
    told = Choices(epochs=2.5).run(context_of(inputs, tmp_path, report, wandb="offline"))
    assert told["steps"] == 10
    (line,) = (line for line in report.said if "wandb stopped" in line)
    assert "its folder is gone" in line
    assert wandb.run is None  # what comes next, the page of the report say, gets a run of its own


@pytest.mark.parametrize(
    ("seconds", "precision"), [([0.002, 0.001], "bf16"), ([0.001, 0.002], "fp32")]
)
def test_auto_trains_in_the_precision_that_was_measured_to_be_faster(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: list[float],
    precision: str,
) -> None:
    monkeypatch.setattr(pipeline.engine.precision, "measured", lambda *_: seconds)
    report = Recording()
    choices = Choices(stage="finetune", method="lora", precision="auto", epochs=0.5)
    told = choices.run(context_of(inputs, tmp_path, report, device="cpu"))
    assert told["precision"] == precision
    assert (told["fp32_ms"], told["bf16_ms"]) == tuple(1e3 * each for each in seconds)
    assert any(f"computing in {precision}" in line for line in report.said)


def test_a_killed_training_goes_on_in_the_precision_it_began_with(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices, killed = Choices(precision="auto", epochs=2.5), tmp_path / "killed"
    run_stage(inputs, killed, choices, stop=7)
    began = json.loads((killed / "scratch/precision.json").read_text())
    other = [0.001, 0.002] if began["precision"] == "bf16" else [0.002, 0.001]
    monkeypatch.setattr(pipeline.engine.precision, "measured", lambda *_: other)
    told = choices.run(context_of(inputs, killed))
    assert {name: told[name] for name in began} == began
    whole = context_of(inputs, tmp_path / "whole")
    Choices(precision=began["precision"], epochs=2.5).run(whole)
    assert figures(context_of(inputs, killed))["val_nll"] == figures(whole)["val_nll"]


def test_the_separator_has_a_rate_of_its_own(inputs: Path, tmp_path: Path) -> None:
    context = context_of(inputs, tmp_path)
    part = Choices(epochs=2.5, rate=1e-3).part()
    assert isinstance(part, PretrainPart)
    pretrain(context, part.model_copy(update={"separator_learning_rate": 5e-3}), 3)
    found = figures(context)
    projector, separator = (
        found[f"learning_rate_{package}"] for package in ("projector", "separator")
    )
    assert separator == pytest.approx([5 * rate for rate in projector])
    assert max(separator) > 1e-3


def test_a_share_of_one_is_captions_only(inputs: Path, tmp_path: Path) -> None:
    context = context_of(inputs, tmp_path)
    kinds = {}
    for share in (0.0, 0.3, 1.0):
        told = Choices(stage="finetune", epochs=0.2, captions=share).run(context)
        kinds[share] = told["examples"]
    # 35 images to learn from, each with one conversation and two captions.
    assert kinds == {0.0: 35, 0.3: 50, 1.0: 70}


def test_the_biases_of_experts_do_not_decay(inputs: Path, tmp_path: Path) -> None:
    Choices(projector=SPARSE, epochs=1.0).run(context_of(inputs, tmp_path))
    (state,) = last_checkpoint(tmp_path)["optimizer_states"]
    decay = {name: g["weight_decay"] for g in state["param_groups"] for name in g["params"]}
    assert {value for name, value in decay.items() if name.endswith("bias")} == {0.0}
    assert {value for name, value in decay.items() if "mixture.weight" in name} == {0.01}


def test_the_best_weights_are_remembered_where_the_work_folder_has_moved(
    inputs: Path, tmp_path: Path
) -> None:
    choices = Choices(stage="finetune", epochs=4.0, rate=0.3)
    straight, broken, moved = (tmp_path / name for name in ("straight", "broken", "moved"))
    told = choices.run(context_of(inputs, straight))
    run_stage(inputs, broken, choices, stop=13)
    broken.rename(moved)
    assert choices.run(context_of(inputs, moved))["val_nll"] == told["val_nll"]
    best = [
        torch.load(work / "scratch/checkpoints/best.ckpt", weights_only=True)["global_step"]
        for work in (straight, moved)
    ]
    assert best[0] == best[1]
