"""Weights & Biases, which must never block a run: offline by default, skipped if it fails."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.engine.stage import StageContext
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.training.observers.wandb_logger import PatientLogger

_INIT_SECONDS, _FINISH_SECONDS = 10, 30  # timeouts of a server that does not answer


def open_wandb(
    context: StageContext, label: str, choices: Mapping[str, Any]
) -> "PatientLogger | None":
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
            config=dict(choices),
        )
        _ = logger.experiment
    except Exception as error:
        context.report.say(f"  wandb cannot start ({type(error).__name__}: {error}): going on")
        return None
    return logger


@dataclass(frozen=True)
class RunReport:
    """What wandb keeps of a finished run.

    Attributes:
        name: Name of the run in wandb; logging under the same name again continues that run.
        page: The report, as HTML.
        place: Where the report lies.
        scores: Main scores by name.
        columns: Columns of the table of generations; the first is an image, None where it is lost.
        rows: Its rows.
    """

    name: str
    page: str
    place: str
    scores: Mapping[str, float]
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def log_report(settings: Settings, report: RunReport, say: Callable[[str], None]) -> None:
    """Log a report as a run of its own; a failure is reported and has no other effect."""
    if settings.wandb == "disabled":
        return
    try:
        import wandb

        run = wandb.init(
            project=settings.wandb_project,
            name=report.name,
            id=report.name,
            resume="allow",
            dir=_folder(settings),
            mode=_mode(settings),
            settings=_quiet(),
            notes=f"Report: {report.place}",
        )
        rows: list[Any] = [[image and wandb.Image(image), *rest] for image, *rest in report.rows]
        table = wandb.Table(columns=list(report.columns), data=rows)
        run.log({"report": wandb.Html(report.page, inject=False), "generations": table})
        run.summary.update({"report": report.place, **report.scores})
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
