"""The Lightning module of both trainings: what is optimized, logged and kept.

Checkpoints hold only what is trained; the frozen rest is loaded from its artifact again. Chance
is drawn from (seed, step), so a resumed run draws what an uninterrupted one would have drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from model.errors import ModelError
from model.objective_configs import ObjectiveConfig
from model.objectives import objective_loss
from model.training_schedule import warmup_cosine
from model.vlm import Batch, VisionLanguageModel


@dataclass(frozen=True)
class OptimizerConfig:
    """Learning rates and regularisation.

    Attributes:
        projector_rate: Peak learning rate of projector and separator.
        language_rate: Peak learning rate of the language model's trainable weights.
        weight_decay: AdamW's decay, for matrices only.
        warmup_share: Share of the steps with a rising rate.
        steps: Optimizer steps of the whole training.
    """

    projector_rate: float
    language_rate: float
    weight_decay: float
    warmup_share: float
    steps: int


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of an optimizer step.

    Attributes:
        batch: The examples of this pass on this process.
        tokens: Supervised tokens of the whole optimizer step, over all passes and processes;
            dividing by it weights every token alike however the step is cut.
        example_ids: Which examples these are.
    """

    batch: Batch
    tokens: int
    example_ids: list[int]

    def to(self, device: torch.device | str) -> "MicroBatch":
        """Return the same on another device; Lightning calls this."""
        return replace(self, batch=self.batch.to(device, non_blocking=True))


class TrainingModule(L.LightningModule):
    """Trains a vision-language model with one objective.

    Args:
        vlm: The model; parameters that do not require gradients stay as they are.
        objective: The training method.
        optimizer: Rates and steps.
        passes: Forward passes per optimizer step.
        seed: Seed of coins and dropout.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        objective: ObjectiveConfig,
        optimizer: OptimizerConfig,
        passes: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.vlm = vlm
        self.objective, self.optimizer_config = objective, optimizer
        self.passes, self.seed = passes, seed
        self.strict_loading = False
        self._usage: list[Tensor] = []

    def training_step(self, batch: MicroBatch, index: int) -> Tensor:
        """Return the loss of one forward pass, weighted so that passes and processes add up.

        Raises:
            ModelError: The loss is not finite; names the examples.
        """
        step = self.global_step
        draw = step * self.passes + index % self.passes
        torch.manual_seed(self.seed * 1_000_003 + draw * 997 + self.global_rank)
        generator = torch.Generator().manual_seed(self.seed + draw * 997 + self.global_rank)
        found = objective_loss(
            self.objective,
            self.vlm,
            batch.batch,
            step=step,
            total_steps=self.optimizer_config.steps,
            generator=generator,
        )
        if not torch.isfinite(found.nll):
            raise ModelError(
                f"the loss is {found.nll.item()} at step {step}, examples {batch.example_ids}: "
                "lower the learning rate or look at these examples"
            )
        world = self.trainer.world_size
        mean = found.token_nll.sum() * world / batch.tokens
        loss = mean + found.auxiliary_loss / self.passes
        self.log("loss", found.nll.detach(), prog_bar=True)
        if len(found.expert_usage):
            self._usage.append(found.expert_usage.detach())
        # Lightning divides by the number of passes, which the weights above have done already.
        return loss * self.passes

    def validation_step(self, batch: MicroBatch, index: int) -> None:
        """Add one batch to the validation likelihood (nats per supervised token)."""
        del index
        nll = self.vlm(batch.batch)
        self.log("val_nll", nll.mean(), batch_size=len(nll), sync_dist=True, on_epoch=True)

    def expert_usage(self) -> list[float]:
        """Return each expert's share of the tokens since the last call, empty without experts."""
        if not self._usage:
            return []
        usage = torch.stack(self._usage).mean(dim=0).tolist()
        self._usage.clear()
        return usage

    def configure_optimizers(self) -> Any:
        """Return AdamW with one group per room and decay, under warm-up and cosine."""
        config = self.optimizer_config
        optimizer = torch.optim.AdamW(list(self._groups()), betas=(0.9, 0.98), eps=1e-8)
        schedule = warmup_cosine(optimizer, config.steps, config.warmup_share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self) -> Iterator[dict[str, Any]]:
        config = self.optimizer_config
        rooms: list[tuple[nn.Module, float]] = [
            (self.vlm.vision_prefix, config.projector_rate),
            (self.vlm.language_model, config.language_rate),
        ]
        for module, rate in rooms:
            trained = [p for p in module.parameters() if p.requires_grad]
            for decay, chosen in (
                (config.weight_decay, [p for p in trained if p.ndim >= 2]),
                (0.0, [p for p in trained if p.ndim < 2]),
            ):
                if chosen:
                    yield {"params": chosen, "lr": rate, "weight_decay": decay}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained}

    def trained_state(self) -> dict[str, Tensor]:
        """Return the trained tensors by name."""
        return {n: p.detach() for n, p in self.vlm.named_parameters() if p.requires_grad}
