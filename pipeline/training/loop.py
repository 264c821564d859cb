"""One training run with Lightning: rounds of steps, validation and a checkpoint; resumable.

Every process of a training calls `fit`. With one device the stage calls it itself; with more,
`pipeline.engine.processes` starts one process per device, and each of them calls it.
"""

import gc
import json
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor

from model.errors import NotFiniteError
from model.training import OptimizerConfig, TrainingModule
from model.vlm import VisionLanguageModel, check_precision
from pipeline.data.schemas import TRAINING
from pipeline.engine.devices import pick_device
from pipeline.engine.processes import World, run_processes
from pipeline.engine.stage import StageContext
from pipeline.engine.training_steps import fast_steps
from pipeline.errors import PipelineError
from pipeline.recipe.parts import TrainingPart
from pipeline.settings import Settings
from pipeline.training.batches import TrainingBatches
from pipeline.training.checkpoint_seals import drop_altered, seal
from pipeline.training.example_sets import ExampleSet
from pipeline.training.history import History
from pipeline.training.observers.samples import SamplesCallback
from pipeline.training.observers.throughput import Bar, Throughput
from pipeline.training.observers.tracking import open_wandb
from pipeline.training.rounds import Rounds
from storage.tables import read_table, write_table

FIGURES = "training.parquet"
SPEED = "speed.json"


@dataclass(frozen=True)
class Training:
    """What a stage prepares for the loop.

    Attributes:
        stage: Name of the stage, for progress and wandb.
        vlm: The model; what requires gradients is trained.
        part: Batch, schedule, precision.
        training: Examples to learn from.
        validation: Held-out examples that choose the checkpoint.
        rates: Peak learning rates of projector, separator and language model.
        seed: Seed of order, coins and dropout.
    """

    stage: str
    vlm: VisionLanguageModel
    part: TrainingPart
    training: ExampleSet
    validation: ExampleSet
    rates: tuple[float, float, float]
    seed: int


@dataclass(frozen=True)
class Trained:
    """What a training run gives: the weights that are kept, and how it went."""

    state: dict[str, Tensor]
    summary: dict[str, Any]


def train(context: StageContext, training: Training) -> Trained:
    """Train a model's trainable parameters and return the best by validation, or the last.

    Writes `training.parquet`. Checkpoints stay in the scratch folder; a killed training resumes
    from the last one.

    Raises:
        PipelineError: A loss was not finite, or one of several processes has failed.
    """
    check_precision(training.part.precision)
    drop_altered(_checkpoints(context), context.report.say)
    if context.settings.devices > 1 or context.settings.launcher:
        run_processes(context, training.stage, training.part, training.seed)
    else:
        fit(context, training, World())
    # The trainer and its module refer to each other, and keep the optimizer's moments alive.
    gc.collect()
    training.vlm.zero_grad(set_to_none=True)
    kept = _checkpoints(context) / f"{training.part.keep}.ckpt"
    saved = torch.load(kept, map_location="cpu", weights_only=True, mmap=True)
    rows = read_table(context.out / FIGURES).to_pylist()
    losses = [row["value"] for row in rows if row["metric"] == "val_nll"]
    summary = {
        "steps": rows[-1]["step"],
        "examples": len(training.training),
        "val_nll": round(min(losses) if training.part.keep == "best" else losses[-1], 4),
        "last_val_nll": round(losses[-1], 4),
        # In the manifest, which is not part of the digest: timings differ every time.
        **_speed(context.scratch / SPEED),
    }
    state = {name.removeprefix("vlm."): value for name, value in saved["state_dict"].items()}
    return Trained(state, summary)


def fit(context: StageContext, training: Training, world: World) -> None:
    """Train as one of several processes, or as the only one.

    Args:
        context: Its scratch folder keeps the checkpoints; the first process writes the figures
            into its `out`.
        training: What to train.
        world: Which process of how many this is.

    Raises:
        PipelineError: A loss or gradient was not finite; a file in the scratch folder lists the
            examples.
    """
    part = training.part
    # Loaded models are in evaluation mode, and Lightning does not change modes. In that mode
    # transformers recomputes no activations, and the model's own dropout is off.
    training.vlm.train()
    if part.gradient_checkpointing:
        training.vlm.enable_gradient_checkpointing()
    batches = TrainingBatches(
        training.training,
        batch=part.batch,
        micro_batch=part.micro_batch,
        seed=training.seed,
        rank=world.rank,
        processes=world.size,
    )
    steps = max(1, round(part.epochs * batches.steps_per_epoch))
    optimizer = OptimizerConfig(
        *training.rates, part.weight_decay, part.warmup_share, part.clip_norm, steps, part.optimizer
    )
    module = TrainingModule(
        training.vlm, part.objective, optimizer, batches.passes, training.seed, part.augment
    )
    rounds = Rounds(batches, training.validation, part, steps)
    history = History(batches.passes, part.patience)
    try:
        _run(context, training, module, rounds, history, world)
    except NotFiniteError as error:
        raise _stopped(context, error, world) from error
    if world.rank == 0:
        write_table(context.out / FIGURES, history.rows, TRAINING)


def _run(
    context: StageContext,
    training: Training,
    module: TrainingModule,
    rounds: Rounds,
    history: History,
    world: World,
) -> None:
    """Run Lightning from the last checkpoint, if there is one."""
    last = _checkpoints(context) / "last.ckpt"
    passes = rounds.batches.passes
    choices = training.part.model_dump(mode="json")
    logger = open_wandb(context, training.stage, choices) if world.rank == 0 else None
    report, label = context.report, training.stage
    with report.track(label, rounds.steps) as tick, warnings.catch_warnings():
        _silence_lightning()
        patches = rounds.batches.examples.patches.shape
        speed = Throughput(passes, patches, label, report, context.scratch / SPEED)
        callbacks: list[Callback] = [history, speed]
        if world.rank == 0:
            callbacks.append(Bar(tick, passes))
        if context.settings.wandb != "disabled":
            callbacks.append(SamplesCallback(context, training.validation, rounds.count))
        device = pick_device(context.settings)
        try:
            trainer = _trainer(context, training.part, rounds, callbacks, logger, world)
            part = training.part
            with fast_steps(device, part.precision, part.attention, training.vlm.language_model):
                trainer.fit(
                    module,
                    datamodule=rounds,
                    ckpt_path=last if last.is_file() else None,
                    weights_only=True,
                )
        finally:
            if logger is not None:
                logger.close()


def _speed(path: Path) -> dict[str, float]:
    figures = json.loads(path.read_text()) if path.is_file() else {}
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def _checkpoints(context: StageContext) -> Path:
    return context.scratch / "checkpoints"


def _keepers(folder: Path) -> list[Callback]:
    """Return callbacks that keep the best weights, then the complete last state for a resume."""
    best = _Keeper(
        folder,
        filename="best",
        monitor="val_nll",
        save_weights_only=True,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    last = _Keeper(
        folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    return [best, last]


class _Keeper(ModelCheckpoint):
    """Remembers its checkpoints by their names in the folder, which may have been moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, which Lightning alone would forget if the folder was moved."""
        folder = Path(self.dirpath or "")

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                **{name: here(state_dict[name]) for name in names},
                "best_k_models": {here(k): v for k, v in state_dict["best_k_models"].items()},
            }
        )


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, syncs it, and only then renames it."""

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
        seal(temporary, target)
        temporary.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or a crash of the machine may forget the new name
        finally:
            os.close(folder)


def _trainer(
    context: StageContext,
    part: TrainingPart,
    rounds: Rounds,
    callbacks: list[Callback],
    logger: WandbLogger | None,
    world: World,
) -> L.Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return L.Trainer(
        accelerator="gpu" if pick_device(context.settings) == "cuda" else "cpu",
        devices=world.size // world.nodes,
        num_nodes=world.nodes,
        strategy=_strategy(context.settings, world),
        precision="bf16-mixed" if part.precision == "bf16" else "32-true",
        # No max_steps: with it, Lightning takes every checkpoint for the middle of a round, and a
        # resumed round ends without validation. Instead, the last round is shorter.
        max_epochs=rounds.count,
        accumulate_grad_batches=rounds.batches.passes,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, *_keepers(_checkpoints(context))],
        logger=logger or False,
        # Set explicitly, because Lightning would use the variables of a Slurm job.
        plugins=[
            _AtomicCheckpointIO(),
            LightningEnvironment() if world.size == 1 else TorchElasticEnvironment(),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=context.scratch,
    )


def _strategy(settings: Settings, world: World) -> Strategy | str:
    if world.size == 1:
        return "auto"
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=world.size,
            tensor_parallel_size=1,
            # One file, which any number of devices can read, sharded or not: `TrainingModule`
            # names the optimizer's states.
            save_distributed_checkpoint=False,
        )
    if settings.strategy in ("auto", "ddp"):
        return DDPStrategy()
    raise PipelineError(
        f"there is no training strategy '{settings.strategy}'",
        "PHIVISION_STRATEGY is ddp (each device has all weights) or fsdp (each has a share)",
    )


def _stopped(context: StageContext, error: NotFiniteError, world: World) -> PipelineError:
    """Save the examples of a step that was not finite and return the error to raise."""
    path = context.scratch / f"not-finite-{world.rank}.json"
    record = {
        "step": error.step,
        "losses": [str(loss) for loss in error.losses],
        "gradient_norm": str(error.gradient_norm),
        "example_ids": error.example_ids,
    }
    path.write_text(json.dumps(record, indent=1))
    return PipelineError(
        str(error),
        f"lower the learning rate, or look at these examples: all their ids are in {path}",
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
    ):
        warnings.filterwarnings("ignore", message=text)
