"""How fast a training is: for the progress bar, the log, wandb and the manifest's summary.

Timings differ from run to run, and an artifact must not: none of them is in its files.
"""

import json
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback

from model.batch import Batch
from model.flops import passes_before, size_of, training_flops
from model.shared_rows import positions_in_example
from model.training import MicroBatch, TrainingModule
from pipeline.progress import Reporter, Ticker
from pipeline.training.history import INTERVAL


def known_peak(device: torch.device) -> float | None:
    """Return a device's peak in bf16 operations per second, or None if it is not known."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about unknown devices, which are fine
        return get_available_flops(device, torch.bfloat16)


def seen_pairs(batch: Batch, prefix: int) -> torch.Tensor:
    """Return how many pairs of positions a batch's mask lets through, those of padding left out.

    A scalar on the batch's device, for which nothing has to wait.

    Args:
        batch: Rows with segments, or some without an image.
        prefix: Positions of an image, the separator included.
    """
    attention = batch.attention[:, :-1]  # the last token is only a target
    segments = torch.zeros_like(batch.input_ids) if batch.segments is None else batch.segments
    # A token sees as many as there are up to its own position in its example.
    places = positions_in_example(segments[:, :-1], attention, prefix)
    text = (places[:, prefix:] + 1).where(attention, 0).sum()
    seen = text + len(attention) * prefix * (prefix + 1) // 2
    if batch.has_image is None:
        return seen
    blind = (attention.sum(dim=1) + 1).where(~batch.has_image, 0).sum()  # texts and separators
    return seen - (prefix - 1) * blind


class Throughput(Callback):
    """Logs examples and tokens per second and, if the device is known, its utilization.

    Tokens are positions of the language model without padding, those of images included. `mfu`
    is the share of the devices' peak that the model's own operations take. Time between rounds,
    mainly validation, is not counted. A resume continues the count.

    `padding_share` is the share of padding among all positions that the language model computes,
    and `masked_attention_share` the share of pairs of positions that a mask hides among all that
    are computed under one. Rows of one example have no mask (`model.shared_rows`).
    """

    def __init__(
        self, passes: int, patches: tuple[int, int], stage: str, report: Reporter, path: Path
    ) -> None:
        self.passes, self.patches, self.stage, self.report = passes, patches, stage, report
        self.path = path
        self._seen: torch.Tensor | None = None  # on the device, until the next time it is shown
        self._done = np.zeros(4)  # examples, tokens, operations, seconds
        self._whole = np.zeros(4)
        self._shape = np.zeros(4)  # tokens, positions, pairs that are seen, pairs under a mask

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the model and look up the device."""
        assert isinstance(pl_module, TrainingModule)
        vlm = pl_module.vlm
        with torch.no_grad():
            patches = torch.zeros(1, *self.patches, device=pl_module.device)
            prefix_tokens = vlm.vision_prefix(patches).tokens.shape[1]
        self.size = size_of(vlm, prefix_tokens)
        self.before = passes_before(pl_module.objective)
        self.peak = known_peak(pl_module.device)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._done[:] = 0
        self._began = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: MicroBatch,
        batch_idx: int,
    ) -> None:
        """Add the work of a forward pass, and log the speed of a finished interval."""
        rows, texts = len(batch.batch.attention), batch.text_tokens
        flops = training_flops(
            self.size, rows=rows, text_tokens=texts, targets=batch.targets, before=self.before
        )
        tokens = rows * self.size.prefix_tokens + texts
        positions = batch.batch.attention.numel() + rows * self.size.prefix_tokens
        self._shape += (tokens, positions, 0, 0)
        self._count_pairs(batch.batch)
        now = time.perf_counter()
        self._done += (len(batch.example_ids), tokens, flops, now - self._began)
        self._began = now
        if (batch_idx + 1) % (self.passes * INTERVAL) == 0:
            self._log(trainer)

    def _count_pairs(self, batch: Batch) -> None:
        """Count the pairs of positions under a mask."""
        if batch.segments is None and batch.has_image is None:
            return
        rows, text = batch.attention.shape
        seen = seen_pairs(batch, self.size.prefix_tokens)
        self._seen = seen if self._seen is None else self._seen + seen
        self._shape[3] += rows * (self.size.prefix_tokens + text - 1) ** 2

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the speed of the last steps of a round."""
        if self._done[3]:
            self._log(trainer)

    def _log(self, trainer: L.Trainer) -> None:
        if self._seen is not None:
            self._shape[2] += int(self._seen)
            self._seen = None
        figures = self._speed(self._done, trainer.world_size)
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
        self._whole += self._done
        self._done[:] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps."""
        return {"whole": self._whole.tolist(), "shape": self._shape.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the work of the earlier rounds."""
        self._whole = np.array(state_dict["whole"])
        self._shape = np.array(state_dict.get("shape", np.zeros(4)))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the speed of the whole training."""
        if self._whole[3] and trainer.is_global_zero:
            figures = self._speed(self._whole, trainer.world_size)
            self.path.write_text(json.dumps(figures))
            text = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
            self.report.say(f"  {self.stage}: {text}")

    def _speed(self, work: np.ndarray, processes: int) -> dict[str, float]:
        examples, tokens, flops, seconds = work.tolist()
        figures = {
            "examples_per_second": processes * examples / seconds,
            "tokens_per_second": processes * tokens / seconds,
        }
        if self.peak is not None:
            figures["mfu"] = flops / seconds / self.peak
        real, positions, seen, pairs = self._shape.tolist()
        figures["padding_share"] = 1 - real / positions
        if pairs:
            figures["masked_attention_share"] = 1 - seen / pairs
        return figures


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
            assert isinstance(pl_module, TrainingModule)
            assert pl_module.last is not None
            note = f"loss {pl_module.last.nll * trainer.world_size:.3f}"
            if "val_nll" in trainer.callback_metrics:
                note += f"  val_nll {float(trainer.callback_metrics['val_nll']):.3f}"
            self.tick(1, note)
