"""One training run in rounds: steps, validation, checkpoint; resumed at the last round.

A round is `validate_every` optimizer steps. It is Lightning's epoch, so a checkpoint always lies
between two rounds, and resuming there needs neither a loader's nor a generator's state.
"""

import logging
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from model.training import MicroBatch, OptimizerConfig, TrainingModule
from model.vlm import VisionLanguageModel, check_precision
from pipeline.devices import pick_device
from pipeline.errors import PipelineError
from pipeline.feed import ExampleSet, TrainingFeed
from pipeline.progress import Ticker
from pipeline.recipe_parts import TrainingPart
from pipeline.schemas import TRAINING
from pipeline.stage import StageContext
from pipeline.tracking import close_wandb, open_wandb
from storage.tables import write_table


@dataclass(frozen=True)
class Trained:
    """What a training run gives: the best weights by validation, and how it went."""

    state: dict[str, Tensor]
    summary: dict[str, Any]


def train(
    context: StageContext,
    vlm: VisionLanguageModel,
    part: TrainingPart,
    *,
    training: ExampleSet,
    validation: ExampleSet,
    rates: tuple[float, float],
    seed: int,
    label: str,
) -> Trained:
    """Train a model's trainable parameters and return the best ones by validation.

    Args:
        context: Its scratch folder keeps the checkpoints.
        vlm: The model.
        part: Batch, schedule, precision.
        training: Examples to learn from.
        validation: Held-out examples that choose the checkpoint.
        rates: Peak learning rates of projector and language model.
        seed: Seed of order, coins and dropout.
        label: Name of the stage, for progress and wandb.

    Raises:
        PipelineError: There is nothing to train on or to validate with.
    """
    _refuse_empty(training, validation)
    check_precision(part.precision)
    if part.gradient_checkpointing:
        vlm.enable_gradient_checkpointing()
    settings = context.settings
    processes = settings.devices
    feed = TrainingFeed(
        training,
        batch=part.batch,
        micro_batch=part.micro_batch,
        seed=seed,
        rank=int(os.environ.get("LOCAL_RANK", "0")),
        processes=processes,
    )
    steps = max(1, round(part.epochs * feed.steps_per_epoch))
    optimizer = OptimizerConfig(*rates, part.weight_decay, part.warmup_share, steps)
    module = TrainingModule(vlm, part.objective, optimizer, feed.passes, seed)
    rounds = _Rounds(feed, validation, part, steps)
    history = _History(feed.passes)
    best = ModelCheckpoint(
        context.scratch / "checkpoints",
        filename="best",
        monitor="val_nll",
        save_last=True,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    logger = open_wandb(context, label)
    with context.report.track(label, steps) as tick:
        callbacks = [history, best, _Bar(tick, feed.passes)]
        trainer = _trainer(context, part, rounds, callbacks, logger)
        last = context.scratch / "checkpoints" / "last.ckpt"
        with warnings.catch_warnings():
            _silence_lightning()
            trainer.fit(
                module,
                datamodule=rounds,
                ckpt_path=last if last.is_file() else None,
                weights_only=True,
            )
    close_wandb(logger)
    write_table(context.out / "training.parquet", history.rows, TRAINING)
    saved = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    state = {name.removeprefix("vlm."): value for name, value in saved["state_dict"].items()}
    return Trained(state, {"steps": steps, "examples": len(training), **history.summary()})


class _Rounds(L.LightningDataModule):
    """Gives Lightning the micro-batches of the current round, and the validation set."""

    def __init__(
        self, feed: TrainingFeed, validation: ExampleSet, part: TrainingPart, steps: int
    ) -> None:
        super().__init__()
        self.feed, self.validation, self.part, self.steps = feed, validation, part, steps
        self.count = math.ceil(steps / part.validate_every)

    def train_dataloader(self) -> "_Round":
        assert self.trainer is not None
        start = self.trainer.current_epoch * self.part.validate_every
        return _Round(self.feed, start, min(start + self.part.validate_every, self.steps))

    def val_dataloader(self) -> "_Validation":
        return _Validation(self.validation, self.part.micro_batch)


class _Round:
    """The micro-batches of some optimizer steps, as an iterable of known length."""

    def __init__(self, feed: TrainingFeed, start: int, stop: int) -> None:
        self.feed, self.start, self.stop = feed, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.feed.passes

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in range(self.start, self.stop):
            yield from self.feed.step(step)


class _Validation:
    """The validation set in a fixed order."""

    def __init__(self, examples: ExampleSet, size: int) -> None:
        self.examples, self.size = examples, size

    def __len__(self) -> int:
        return math.ceil(len(self.examples.rows) / self.size)

    def __iter__(self) -> Iterator[MicroBatch]:
        return self.examples.in_order(self.size)


class _History(Callback):
    """Figures of every round, kept in the checkpoint so that a resume loses none."""

    def __init__(self, passes: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.passes = passes
        self._losses: list[Tensor] = []

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._losses.append(trainer.callback_metrics["loss"].detach())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        figures = {
            "loss": float(torch.stack(self._losses).mean()),
            "val_nll": float(trainer.callback_metrics["val_nll"]),
            "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
        }
        for number, usage in enumerate(pl_module.expert_usage()):
            figures[f"expert_{number}_usage"] = usage
        self._losses.clear()
        self.rows += [
            {"step": step, "metric": name, "value": value} for name, value in figures.items()
        ]
        for logger in trainer.loggers:
            logger.log_metrics(figures, step)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def summary(self) -> dict[str, float]:
        losses = [row["value"] for row in self.rows if row["metric"] == "val_nll"]
        return {"val_nll": round(min(losses), 4), "last_val_nll": round(losses[-1], 4)}


class _Bar(Callback):
    """Moves the progress bar once per optimizer step."""

    def __init__(self, tick: Ticker, passes: int) -> None:
        self.tick, self.passes = tick, passes

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.tick(trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % self.passes == 0:
            shown = trainer.callback_metrics
            note = "  ".join(
                f"{name} {float(shown[name]):.3f}" for name in ("loss", "val_nll") if name in shown
            )
            self.tick(1, note)


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its name, syncs it, and only then gives it the name."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        with temporary.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)


def _trainer(
    context: StageContext,
    part: TrainingPart,
    rounds: _Rounds,
    callbacks: list[Callback],
    logger: WandbLogger | None,
) -> L.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    settings = context.settings
    return L.Trainer(
        accelerator="gpu" if pick_device(settings) == "cuda" else "cpu",
        devices=settings.devices,
        strategy=settings.strategy,
        precision="bf16-mixed" if part.precision == "bf16" else "32-true",
        max_epochs=rounds.count,
        max_steps=rounds.steps,
        accumulate_grad_batches=rounds.feed.passes,
        gradient_clip_val=part.clip_norm,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=logger or False,
        plugins=[_AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=context.scratch,
    )


def _silence_lightning() -> None:
    """Ignore advice about loaders and folders that does not apply to rounds."""
    for text in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*find the total length of your data.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*Starting from v.*",
        ".*resuming from a checkpoint.*",
        ".*The number of training batches.*",
        ".*module\\(s\\) in eval mode.*",
        ".*anonymous setting has no effect.*",
    ):
        warnings.filterwarnings("ignore", message=text)


def _refuse_empty(training: ExampleSet, validation: ExampleSet) -> None:
    for name, examples in (("train", training), ("validation", validation)):
        if not len(examples):
            raise PipelineError(
                f"the {name} split has no example",
                "raise images.limit or images.validation_share, or look at the drops",
            )
