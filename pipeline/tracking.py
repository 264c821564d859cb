"""Weights & Biases, which may watch but never block: offline by default, skipped if it fails."""

import os
from typing import TYPE_CHECKING

from pipeline.stage import StageContext

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger


def open_wandb(context: StageContext, label: str) -> "WandbLogger | None":
    """Return a logger for one training, or None where wandb is disabled or cannot start.

    The run keeps its id across a resume. Host name, executable, packages and source are not
    recorded; our own figures are in the artifact in any case.
    """
    settings = context.settings
    if settings.wandb == "disabled":
        return None
    if settings.wandb == "online" and not os.environ.get("WANDB_API_KEY"):
        context.report.say("  wandb: no WANDB_API_KEY in the environment, so it stays offline")
    online = settings.wandb == "online" and bool(os.environ.get("WANDB_API_KEY"))
    try:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        folder = (settings.work / "wandb").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        logger = WandbLogger(
            name=label,
            project=settings.wandb_project,
            id=context.scratch.parent.name,
            resume="allow",
            save_dir=folder,
            offline=not online,
            settings=wandb.Settings(
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
                disable_code=True,
                disable_git=True,
                silent=True,
                console="off",
                init_timeout=20,
            ),
        )
        _ = logger.experiment
    except Exception as error:
        context.report.say(f"  wandb cannot start ({type(error).__name__}: {error}): going on")
        return None
    return logger


def close_wandb(logger: "WandbLogger | None") -> None:
    """Finish a run, so that the next training starts its own."""
    if logger is not None:
        logger.experiment.finish()
