"""Weights & Biases, which must never block a run: offline by default, skipped if it fails."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.engine.stage import StageContext
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.training.observers.wandb_logger import PatientLogger

_INIT_SECONDS, _FINISH_SECONDS = 10, 30  # timeouts of a server that does not answer


def open_wandb(context: StageContext, label: str) -> "PatientLogger | None":
    """Return a logger for one training, or None where wandb is disabled or cannot start.

    The run keeps its id across a resume. Host name, executable, packages and source are not
    recorded; the metrics are in the artifact in any case.
    """
    settings = context.settings
    if settings.wandb == "disabled":
        return None
    if settings.wandb == "online" and not os.environ.get("WANDB_API_KEY"):
        context.report.say("  wandb: no WANDB_API_KEY in the environment, so it stays offline")
    try:
        from pipeline.training.observers.wandb_logger import PatientLogger

        folder = _folder(settings)
        logger = PatientLogger(
            context.report.say,
            name=label,
            project=settings.wandb_project,
            id=context.scratch.parent.name,
            resume="allow",
            save_dir=folder,
            # Lightning's `offline` sets an environment variable, which wandb reads only once.
            mode=_mode(settings),
            settings=_quiet(),
        )
        _ = logger.experiment
    except Exception as error:
        context.report.say(f"  wandb cannot start ({type(error).__name__}: {error}): going on")
        return None
    return logger


def log_page(settings: Settings, name: str, page: str, say: Callable[[str], None]) -> None:
    """Log an HTML page as a run of its own; a failure is reported and has no other effect.

    Args:
        settings: Mode, project and folder.
        name: Name of the run; logging under the same name again continues that run.
        page: The HTML text.
        say: Prints a line.
    """
    if settings.wandb == "disabled":
        return
    try:
        import wandb

        run = wandb.init(
            project=settings.wandb_project,
            name=name,
            id=name,
            resume="allow",
            dir=_folder(settings),
            mode=_mode(settings),
            settings=_quiet(),
        )
        run.log({"report": wandb.Html(page, inject=False)})
        run.finish()
    except Exception as error:
        say(f"  wandb cannot keep the report ({type(error).__name__}: {error}): going on")


def _mode(settings: Settings) -> Literal["online", "offline"]:
    online = settings.wandb == "online" and os.environ.get("WANDB_API_KEY")
    return "online" if online else "offline"


def _folder(settings: Settings) -> Path:
    folder = (settings.work / "wandb").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _quiet() -> Any:
    """Return settings that record neither the machine nor the source."""
    import wandb

    return wandb.Settings(
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        disable_code=True,
        disable_git=True,
        silent=True,
        console="off",
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
    )
