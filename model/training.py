"""The Lightning module of both trainings: what is optimized, measured and saved.

Checkpoints hold only what is trained; the frozen rest is loaded from its artifact again. Random
states are seeded from (seed, step), so a resumed run draws what an uninterrupted one would draw.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.augmentation import augmented
from model.augmentation_configs import AugmentationConfig
from model.errors import ModelError, NotFiniteError
from model.language_parts import body_of, head_of, layers_of
from model.objective_configs import ObjectiveConfig
from model.objectives import objective_loss
from model.training_schedule import warmup_cosine
from model.vlm import Batch, VisionLanguageModel


@dataclass(frozen=True)
class OptimizerConfig:
    """Learning rates and regularisation.

    Attributes:
        projector_rate: Peak learning rate of the projector.
        separator_rate: Peak learning rate of the separator.
        language_rate: Peak learning rate of the language model's trainable weights.
        weight_decay: AdamW's decay, for matrices only.
        warmup_share: Share of the steps with a rising rate.
        clip_norm: Largest norm of the gradient.
        steps: Optimizer steps of the whole training.
        kind: adamw, or adamw_8bit, whose moments take 8 bits.
    """

    projector_rate: float
    separator_rate: float
    language_rate: float
    weight_decay: float
    warmup_share: float
    clip_norm: float
    steps: int
    kind: str


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of an optimizer step.

    Attributes:
        batch: The examples of this pass on this process.
        tokens: Supervised tokens of the whole optimizer step, over all passes and processes;
            dividing by it weights every token alike however the step is cut. In validation, 0
            marks a repeated batch that does not count.
        example_ids: Which examples these are.
        text_tokens: Text tokens of this pass, without padding.
        targets: Supervised tokens of this pass.
    """

    batch: Batch
    tokens: int
    example_ids: list[int]
    text_tokens: int
    targets: int

    def to(self, device: torch.device | str) -> "MicroBatch":
        """Return the same on another device; Lightning calls this."""
        return replace(self, batch=self.batch.to(device, non_blocking=True))


@dataclass(frozen=True)
class StepFigures:
    """Figures of one optimizer step.

    Attributes:
        nll: Nats over the supervised tokens of this process, divided by the tokens of all; the
            sum over processes is the mean loss per token.
        gradient_norm: Norm of the gradient before clipping, of all processes together.
        usage: Each expert's share of the tokens [expert], length 0 without experts.
    """

    nll: float
    gradient_norm: float
    usage: Tensor


@dataclass(frozen=True)
class _Pass:
    """A forward pass whose optimizer step is still to come; figures stay on the device."""

    nll: Tensor
    usage: Tensor
    batch: MicroBatch


class TrainingModule(L.LightningModule):
    """Trains a vision-language model with one objective.

    Args:
        vlm: The model; parameters that do not require gradients stay as they are.
        objective: The training method.
        optimizer: Rates and steps.
        passes: Forward passes per optimizer step.
        seed: Seed of coins, dropout and augmentation.
        augmentation: How images are varied.

    Attributes:
        last: Figures of the last optimizer step, None before the first.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        objective: ObjectiveConfig,
        optimizer: OptimizerConfig,
        passes: int,
        seed: int,
        augmentation: AugmentationConfig,
    ) -> None:
        super().__init__()
        self.vlm, self.augmentation = vlm, augmentation
        self.objective, self.optimizer_config = objective, optimizer
        self.passes, self.seed = passes, seed
        self.strict_loading = False
        self.last: StepFigures | None = None
        self._step: list[_Pass] = []
        self._held_out: list[tuple[Tensor, int]] = []

    def configure_model(self) -> None:
        """Shard the weights over the devices under FSDP; Lightning calls this.

        Every module that is called directly and has weights is sharded by itself, because training
        calls parts of the model, not its root, whose hooks would not run. Tied embeddings are one
        weight of two modules, which FSDP shards only in a root: each device keeps all of them
        where they are frozen.

        Raises:
            ModelError: Tied embeddings are to be trained.
        """
        mesh = self.device_mesh
        if mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        language_model = self.vlm.language_model
        body, head = body_of(language_model), head_of(language_model)
        words, layers = language_model.get_input_embeddings(), layers_of(language_model)
        # The last norm has another name in every family.
        others = [m for m in body.children() if m is not words and m is not layers]
        parts = [
            self.vlm.vision_prefix,
            *layers.children(),
            *(module for module in others if any(True for _ in module.parameters())),
        ]
        if words.weight is not head.weight:
            parts += [words, head]
        elif words.weight.requires_grad:
            raise ModelError(
                "fsdp cannot shard this language model, whose embeddings are tied and trained",
                "use finetune.method=lora, or the strategy ddp",
            )
        for part in parts:
            fully_shard(part, mesh=mesh["data_parallel"])

    def training_step(self, batch: MicroBatch, index: int) -> Tensor:
        """Return the loss of one forward pass, weighted so that passes and processes add up."""
        step = self.global_step
        draw = step * self.passes + index % self.passes
        self._seed_chance(self.seed * 1_000_003 + draw * 997 + self.global_rank)
        generator = torch.Generator().manual_seed(self.seed + draw * 997 + self.global_rank)
        mean = self.vlm.vision_prefix.patch_mean
        patches = augmented(batch.batch.patches, self.augmentation, mean, generator)
        losses = objective_loss(
            self.objective,
            self.vlm,
            batch.batch.showing(patches),
            step=step,
            total_steps=self.optimizer_config.steps,
            generator=generator,
        )
        total = losses.token_nll.sum()
        self._step.append(_Pass(total.detach(), losses.expert_usage, batch))
        loss = total * self.trainer.world_size / batch.tokens + losses.auxiliary_loss / self.passes
        # Lightning divides by the number of passes, which the weights above have done already.
        return loss * self.passes

    def _seed_chance(self, seed: int) -> None:
        """Seed dropout. `torch.manual_seed` would also seed devices that are not there.

        For each of those it records the call stack, which on a CPU took a sixth of a small model's
        step.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of a step, and keep the step's figures; Lightning calls this.

        Raises:
            NotFiniteError: A loss or the gradient is not finite. All processes have the same
                gradient, so usually all raise it; the launcher ends those that still wait.
        """
        del gradient_clip_val, gradient_clip_algorithm
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(weights, self.optimizer_config.clip_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        passes, self._step = self._step, []
        # The only point of a step where the CPU waits for the device.
        *sums, length = torch.stack([*(one_pass.nll for one_pass in passes), norm]).tolist()
        self._refuse_not_finite(passes, sums, length)
        nll = sum(
            total / one_pass.batch.tokens for total, one_pass in zip(sums, passes, strict=True)
        )
        usage = torch.stack([one_pass.usage for one_pass in passes]).mean(dim=0)
        self.last = StepFigures(nll, length, usage)

    def _refuse_not_finite(self, passes: Sequence[_Pass], sums: list[float], norm: float) -> None:
        finite = torch.tensor([*sums, norm]).isfinite().tolist()
        if all(finite):
            return
        spoilt = [one_pass for one_pass, fine in zip(passes, finite, strict=False) if not fine]
        raise NotFiniteError(
            self.global_step,
            [total / one_pass.batch.targets for total, one_pass in zip(sums, passes, strict=True)],
            norm,
            [example for one_pass in spoilt or passes for example in one_pass.batch.example_ids],
            own=bool(spoilt),
        )

    def validation_step(self, batch: MicroBatch, index: int) -> None:
        """Add one batch to the validation likelihood."""
        del index
        nll = self.vlm(batch.batch)
        if batch.tokens:
            self._held_out.append((nll.double().sum(), len(nll)))

    def on_validation_epoch_end(self) -> None:
        """Log the validation likelihood over all processes, in nats per supervised token."""
        sums = [torch.zeros((), dtype=torch.float64, device=self.device)]
        sums += [total for total, _ in self._held_out]
        count = sum(tokens for _, tokens in self._held_out)
        self._held_out.clear()
        here = torch.stack([torch.stack(sums).sum(), sums[0] + count])
        total, tokens = self.trainer.strategy.reduce(here, reduce_op="sum")
        self.log("val_nll", (total / tokens).float(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return AdamW with one group per part of the model and decay, under warm-up and cosine."""
        config = self.optimizer_config
        groups = [group for _, group in self._groups()]
        optimizer = _adamw(config.kind, groups)
        schedule = warmup_cosine(optimizer, config.steps, config.warmup_share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.optimizer_config
        prefix, language = self.vlm.vision_prefix, self.vlm.language_model
        parts: list[tuple[str, Iterable[tuple[str, nn.Parameter]], float]] = [
            ("projector", prefix.named_parameters(), config.projector_rate),
            ("language", language.named_parameters(), config.language_rate),
        ]
        if config.separator_rate != config.projector_rate:
            projector = prefix.projector.named_parameters()
            separator = [("separator", prefix.separator)]
            parts[:1] = [
                ("projector", projector, config.projector_rate),
                ("separator", separator, config.separator_rate),
            ]
        for part, named, rate in parts:
            trained = [(name, p) for name, p in named if p.requires_grad]
            # The biases of a mixture's experts are stored as one matrix, but must not decay.
            decays = [p.ndim >= 2 and not name.endswith("bias") for name, p in trained]
            for decay, chosen in (
                (config.weight_decay, [p for (_, p), d in zip(trained, decays, strict=True) if d]),
                (0.0, [p for (_, p), d in zip(trained, decays, strict=True) if not d]),
            ):
                if chosen:
                    yield part, {"params": chosen, "lr": rate, "weight_decay": decay}

    def learning_rates(self) -> dict[str, float]:
        """Return the current learning rate of each trained part, by its name."""
        groups = zip(self._groups(), self.trainer.optimizers[0].param_groups, strict=True)
        return {part: float(group["lr"]) for (part, _), group in groups}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained, and the optimizer's state by the names of the weights.

        A plain optimizer numbers weights by their place in the groups, a sharded one by their place
        in the model; a resume may change from one to the other.
        """
        names = {p: name for name, p in self.named_parameters() if p.requires_grad}
        trained = set(names.values())
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained}
        if "optimizer_states" in checkpoint:
            (states,), (optimizer,) = checkpoint["optimizer_states"], self.trainer.optimizers
            _name_states(states, [[names[p] for p in g["params"]] for g in optimizer.param_groups])


def _adamw(kind: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return AdamW over groups of weights.

    In 8 bits (Dettmers et al. 2022, arXiv 2110.02861), weights of fewer than 4,096 numbers keep
    moments in float32.
    """
    if kind == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit  # ty: ignore[import-not-found]

        return AdamW8bit(groups, betas=(0.9, 0.98), eps=1e-8)
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, fused=True)


def _name_states(states: dict[str, Any], names: list[list[str]]) -> None:
    """Replace the numbers of weights in an optimizer's state by names, in place."""
    name_of: dict[Any, str] = {}
    for group, named in zip(states.get("param_groups", []), names, strict=False):
        name_of.update(zip(group["params"], named, strict=True))
        group["params"] = named
    if name_of:
        states["state"] = {name_of[number]: each for number, each in states["state"].items()}
