"""What is seen of a training: figures of every round, and a bar that moves with every step."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from model.training import TrainingModule
from pipeline.progress import Ticker


class History(Callback):
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
        """Keep the loss of one forward pass."""
        self._losses.append(trainer.callback_metrics["loss"].detach())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write down the figures of a finished round."""
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
        """Return what the checkpoint keeps."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the figures of the rounds before."""
        self.rows = list(state_dict["rows"])

    def summary(self) -> dict[str, float]:
        """Return the best and the last validation likelihood, in nats per token."""
        losses = [row["value"] for row in self.rows if row["metric"] == "val_nll"]
        return {"val_nll": round(min(losses), 4), "last_val_nll": round(losses[-1], 4)}


class Bar(Callback):
    """Moves the progress bar once per optimizer step."""

    def __init__(self, tick: Ticker, passes: int) -> None:
        self.tick, self.passes = tick, passes

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the bar where the checkpoint ended."""
        self.tick(trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar after the last pass of a step."""
        if (batch_idx + 1) % self.passes == 0:
            shown = trainer.callback_metrics
            note = "  ".join(
                f"{name} {float(shown[name]):.3f}" for name in ("loss", "val_nll") if name in shown
            )
            self.tick(1, note)
