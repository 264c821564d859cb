"""History of a training: metrics that depend on its data and weights, never on a clock.

They go into the artifact, so equal trainings give equal rows. An interval never spans two rounds,
because a resume begins with a round.
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from model.training import StepFigures, TrainingModule

INTERVAL = 10  # optimizer steps per row of metrics


class History(Callback):
    """Metrics of every interval, kept in the checkpoint so that a resume loses none.

    Args:
        passes: Forward passes per optimizer step.
        patience: Rounds without a better validation likelihood that end the training; 0: none do.
            It is checked on the kept metrics, so a training killed at its end stays ended.
    """

    def __init__(self, passes: int, patience: int = 0) -> None:
        self.rows: list[dict[str, Any]] = []
        self.passes, self.patience = passes, patience
        self._steps: list[StepFigures] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do not continue a training that has ended."""
        trainer.should_stop = trainer.should_stop or self._is_over()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the figures of an optimizer step."""
        if (batch_idx + 1) % self.passes:
            return
        assert isinstance(pl_module, TrainingModule)
        assert pl_module.last is not None
        self._steps.append(pl_module.last)
        if len(self._steps) == INTERVAL:
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the last steps of a finished round, and its validation likelihood."""
        assert isinstance(pl_module, TrainingModule)
        if self._steps:
            self._write(trainer, pl_module)
        self._add(trainer, {"val_nll": float(trainer.callback_metrics["val_nll"])})
        trainer.should_stop = trainer.should_stop or self._is_over()

    def _is_over(self) -> bool:
        losses = [row["value"] for row in self.rows if row["metric"] == "val_nll"]
        since = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        return 0 < self.patience <= since

    def _write(self, trainer: L.Trainer, module: TrainingModule) -> None:
        steps, count = self._steps, len(self._steps)
        usage = torch.stack([step.usage for step in steps]).mean(dim=0)
        nll = sum(step.nll for step in steps) / count
        here = torch.cat([usage, torch.tensor([nll], device=usage.device)])
        # Processes hold shares of the loss, which add up; their experts' shares are averaged.
        summed = trainer.strategy.reduce(here, reduce_op="sum").tolist()
        figures = {
            "loss": summed.pop(),
            "gradient_norm": sum(step.gradient_norm for step in steps) / count,
        }
        for part, rate in module.learning_rates().items():
            figures[f"learning_rate_{part}"] = rate
        for number, share in enumerate(summed):
            figures[f"expert_{number}_usage"] = share / trainer.world_size
        self._steps = []
        self._add(trainer, figures)

    def _add(self, trainer: L.Trainer, figures: dict[str, float]) -> None:
        step = trainer.global_step
        self.rows += [
            {"step": step, "metric": name, "value": value} for name, value in figures.items()
        ]
        for logger in trainer.loggers:
            logger.log_metrics(figures, step)

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the metrics of the earlier rounds."""
        self.rows = list(state_dict["rows"])
