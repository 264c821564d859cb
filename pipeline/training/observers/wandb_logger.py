"""Lightning's logger for Weights & Biases, whose failures do not stop a training.

A failure is reported once; from then on nothing is sent, and the training continues. The metrics
are in the artifact in any case.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import WandbLogger

# wandb draws one section for all metrics whose names begin alike, up to a slash.
_SECTIONS = (
    ("val_", "validation/"),
    ("learning_rate_", "learning rate/"),
    ("expert_", "experts/"),
    ("loss", "training/loss"),
    ("gradient_norm", "training/gradient_norm"),
)
_SPEED = "speed/"


class PatientLogger(WandbLogger):
    """A `WandbLogger` whose failures stop nothing."""

    def __init__(self, say: Callable[[str], None], **options: Any) -> None:
        super().__init__(**options)
        self._wandb_init.pop("anonymous", None)  # newer wandb warns of it, whatever its value
        self._say = say
        self._works = True

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures of a step, in sections."""
        # Tables come here, too.
        named = {
            _in_section(name) if isinstance(value, int | float) else name: value
            for name, value in metrics.items()
        }
        self.attempt(super().log_metrics, named, step)

    def log_table(self, key: str, *others: Any, **options: Any) -> None:
        """Log a table."""
        self.attempt(super().log_table, key, *others, **options)

    def log_hyperparams(self, params: Any) -> None:
        """Log the hyperparameters of the training."""
        self.attempt(super().log_hyperparams, params)

    def finalize(self, status: str) -> None:
        """Do what Lightning expects at the end of a training."""
        self.attempt(super().finalize, status)

    def close(self) -> None:
        """Finish the run, even after a failure, so that the next training starts its own."""
        self._works = True
        self.attempt(lambda: self.experiment.finish())

    def attempt(self, log: Callable[..., None], *values: Any, **options: Any) -> None:
        """Call a logging function; if it fails, say so once and log nothing from then on."""
        if not self._works:
            return
        try:
            log(*values, **options)
        except Exception as error:
            self._works = False
            self._say(f"  wandb stopped ({type(error).__name__}: {error}): going on without it")


def _in_section(name: str) -> str:
    """Return wandb's name of a metric of a training."""
    for beginning, section in _SECTIONS:
        if name.startswith(beginning):
            return section + name.removeprefix(beginning)
    return _SPEED + name
