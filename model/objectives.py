"""The training methods: standard (teacher forcing) and scheduled sampling, in parallel passes.

Both give the same `ObjectiveLoss` and train on the same targets; they differ only in the tokens
that are fed. At sampling rate 1.0 they are the same computation.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from model.batch import Batch
from model.objective_configs import (
    MixedByLengthConfig,
    MixedConfig,
    ObjectiveConfig,
    ScheduledSamplingConfig,
    StandardConfig,
    is_scheduled_step,
    sampling_rate,
)
from model.shared_rows import per_example
from model.vlm import VisionLanguageModel


class ObjectiveLoss(NamedTuple):
    """The loss of one batch and what to log beside it.

    Attributes:
        token_nll: [target] float32; nats per supervised token, row by row, with gradient.
        auxiliary_loss: Scalar float32; the projector's weighted load-balancing loss.
        expert_usage: [expert] float32; each expert's share of the tokens, length 0 without experts.
    """

    token_nll: Tensor
    auxiliary_loss: Tensor
    expert_usage: Tensor

    @property
    def nll(self) -> Tensor:
        """Mean negative log-likelihood over the supervised tokens, in nats."""
        return self.token_nll.mean()

    @property
    def tokens(self) -> int:
        """Supervised tokens of the batch, the weight of its mean under accumulation."""
        return len(self.token_nll)

    @property
    def loss(self) -> Tensor:
        """What is minimized: mean negative log-likelihood plus auxiliary loss."""
        return self.nll + self.auxiliary_loss


def objective_loss(
    config: ObjectiveConfig,
    vlm: VisionLanguageModel,
    batch: Batch,
    *,
    step: int,
    total_steps: int,
    generator: torch.Generator,
) -> ObjectiveLoss:
    """The loss of a batch under the configured training method.

    The choice between methods depends on the step and the configuration only, so that all
    processes of a run do the same number of forward passes (FSDP would hang otherwise).

    Args:
        config: The training method.
        vlm: The model.
        batch: Examples with at least one supervised token.
        step: Optimizer step, from 0.
        total_steps: Optimizer steps of the whole training.
        generator: Source of the coins. Seeded from (seed, step, rank) it needs no saved state.
    """
    if isinstance(config, StandardConfig):
        return _loss_when_fed(vlm, batch, with_replaced_tokens(batch, config.replaced, generator))
    if isinstance(config, MixedConfig) and not is_scheduled_step(config, step):
        return standard(vlm, batch)
    scheduled = config if isinstance(config, ScheduledSamplingConfig) else config.scheduled
    return scheduled_sampling(
        vlm,
        batch,
        sampling_rate(scheduled, step, total_steps),
        generator,
        passes=scheduled.passes,
        longest=config.longest if isinstance(config, MixedByLengthConfig) else None,
    )


def standard(vlm: VisionLanguageModel, batch: Batch) -> ObjectiveLoss:
    """Teacher forcing: one masked forward pass that is fed the true tokens.

    Raises:
        ModelError: The batch has no supervised token.
    """
    return _loss_when_fed(vlm, batch, batch.input_ids)


def with_replaced_tokens(
    batch: Batch, share: float, generator: torch.Generator
) -> Int64[Tensor, "batch text"]:
    """Return the tokens to feed: some supervised ones are replaced by others of the batch.

    Unigram noising (Xie et al. 2017, arXiv 1703.02573) with the batch's own frequencies: a text
    cannot be learned from its beginning alone. Draws depend on neither padding nor device.

    Args:
        batch: Its supervised tokens may be replaced, and are what replaces them.
        share: Share of them that is replaced; some get the token that they have.
        generator: Source of the draws.
    """
    if not share:
        return batch.input_ids
    true = true_token_coins(batch, 1 - share, generator)
    places = batch.target_rows, batch.target_columns
    count, device = len(places[0]), generator.device
    drawn = torch.randint(count, (count,), generator=generator, device=device)
    others = batch.input_ids[places][drawn.to(batch.input_ids.device)]
    return torch.where(true, batch.input_ids, batch.input_ids.index_put(places, others))


def scheduled_sampling(
    vlm: VisionLanguageModel,
    batch: Batch,
    rate: float,
    generator: torch.Generator,
    *,
    passes: int = 1,
    longest: int | None = None,
) -> ObjectiveLoss:
    """Scheduled sampling in parallel (Mihaylova and Martins 2019, arXiv 1906.07651).

    `passes` forward passes without gradient predict every supervised token, the first from the
    true tokens, each later one from the mixture that the coins made of the pass before. A last
    pass with gradient is fed the mixture. Coins are drawn once. After n passes the first n fed
    tokens of an example are those of sequential sampling, so that many passes equal the sequential
    loop. The targets are always the true tokens.

    Args:
        vlm: The model.
        batch: Examples with at least one supervised token.
        rate: Probability of feeding the true token; 1.0 is exactly `standard`.
        generator: Source of the coins.
        passes: Predicting passes, at least 1.
        longest: Examples with more supervised tokens than this are fed the true tokens; None sets
            no limit.

    Raises:
        ModelError: The batch has no supervised token.
    """
    if rate >= 1.0:
        return standard(vlm, batch)
    truth = true_token_coins(batch, rate, generator, longest)
    fed_ids, places = batch.input_ids, (batch.target_rows, batch.target_columns)
    with torch.no_grad():
        for _ in range(passes):
            predicted = vlm.predict(vlm.supervised_states(batch, fed_ids).states)
            guesses = batch.input_ids.index_put(places, predicted)
            fed_ids = torch.where(truth, batch.input_ids, guesses)
    return _loss_when_fed(vlm, batch, fed_ids)


def true_token_coins(
    batch: Batch, rate: float, generator: torch.Generator, longest: int | None = None
) -> Bool[Tensor, "batch text"]:
    """A coin per token: True where the true token is fed; always True where unsupervised.

    Coins are drawn per supervised token in row order on the generator's device, so neither the
    padding nor the training device changes them.

    Args:
        batch: The tokens to draw for are its supervised ones.
        rate: Probability of True.
        generator: Source of the coins.
        longest: Examples with more supervised tokens than this are all True; None sets no limit.
    """
    places = batch.target_rows, batch.target_columns
    draws = torch.rand(len(places[0]), generator=generator, device=generator.device)
    kept = (draws < rate).to(batch.supervised.device)
    truth = torch.ones_like(batch.supervised).index_put(places, kept)
    if longest is not None:
        alone = torch.zeros_like(batch.input_ids)
        segments = alone if batch.segments is None else batch.segments
        truth |= per_example(batch.supervised, segments) > longest
    return truth


def _loss_when_fed(
    vlm: VisionLanguageModel, batch: Batch, fed_ids: Int64[Tensor, "batch text"]
) -> ObjectiveLoss:
    output = vlm.supervised_states(batch, fed_ids)
    token_nll = vlm.nll(output.states, output.targets)
    return ObjectiveLoss(token_nll, output.auxiliary_loss, output.expert_usage)
