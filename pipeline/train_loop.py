"""One training run with Lightning: rounds of steps, validation and a checkpoint; resumable."""

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from model.training import OptimizerConfig, TrainingModule
from model.vlm import VisionLanguageModel, check_precision
from pipeline.devices import pick_device
from pipeline.errors import PipelineError
from pipeline.feed import ExampleSet, TrainingFeed
from pipeline.recipe_parts import TrainingPart
from pipeline.rounds import Rounds
from pipeline.schemas import TRAINING
from pipeline.stage import StageContext
from pipeline.tracking import close_wandb, open_wandb
from pipeline.training_watch import Bar, History
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
    feed = TrainingFeed(
        training,
        batch=part.batch,
        micro_batch=part.micro_batch,
        seed=seed,
        rank=int(os.environ.get("LOCAL_RANK", "0")),
        processes=context.settings.devices,
    )
    steps = max(1, round(part.epochs * feed.steps_per_epoch))
    optimizer = OptimizerConfig(*rates, part.weight_decay, part.warmup_share, steps)
    module = TrainingModule(vlm, part.objective, optimizer, feed.passes, seed)
    history = History(feed.passes)
    state = _fit(context, part, module, Rounds(feed, validation, part, steps), history, label)
    write_table(context.out / "training.parquet", history.rows, TRAINING)
    return Trained(state, {"steps": steps, "examples": len(training), **history.summary()})


def _fit(
    context: StageContext,
    part: TrainingPart,
    module: TrainingModule,
    rounds: Rounds,
    history: History,
    label: str,
) -> dict[str, Tensor]:
    """Run Lightning from the last checkpoint, if there is one; return the best trained tensors."""
    checkpoints = context.scratch / "checkpoints"
    best = ModelCheckpoint(
        checkpoints,
        filename="best",
        monitor="val_nll",
        save_last=True,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    last = checkpoints / "last.ckpt"
    logger = open_wandb(context, label)
    with context.report.track(label, rounds.steps) as tick, warnings.catch_warnings():
        _silence_lightning()
        callbacks: list[Callback] = [history, best, Bar(tick, rounds.feed.passes)]
        trainer = _trainer(context, part, rounds, callbacks, logger)
        trainer.fit(
            module,
            datamodule=rounds,
            ckpt_path=last if last.is_file() else None,
            weights_only=True,
        )
    close_wandb(logger)
    saved = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    return {name.removeprefix("vlm."): value for name, value in saved["state_dict"].items()}


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
    rounds: Rounds,
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
