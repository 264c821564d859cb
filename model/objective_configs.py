"""Which training method is used, as a value, and how its sampling rate decays.

Read by `plan`, so no torch here; the losses themselves are in `model.objectives`.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.errors import ModelError
from model.projectors import FrozenModel

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Literal["linear", "exponential", "inverse_sigmoid"]


class StandardConfig(FrozenModel):
    """Teacher forcing: every token is predicted from the true tokens before it."""

    kind: Literal["standard"] = "standard"
    replaced: Share = Field(
        description="Share of the supervised tokens that are fed as another supervised token of "
        "the batch, so that a text is learned from its image and not only from its own beginning."
    )


class ScheduledSamplingConfig(FrozenModel):
    """Scheduled sampling (Bengio et al. 2015, arXiv 1506.03099) in parallel passes."""

    kind: Literal["scheduled_sampling"] = "scheduled_sampling"
    decay: Decay = Field(description="Shape of the sampling rate over training.")
    start_rate: Share = Field(description="Probability of feeding the true token at step 0.")
    end_rate: Share = Field(description="The same probability at the last step.")
    sharpness: float = Field(
        ge=0.01,
        le=50,
        description="How fast the rate falls. linear: share of the way done at the end of "
        "training (above 1 it arrives earlier). exponential: e-foldings over training. "
        "inverse_sigmoid: steepness around the middle of training; 10 is a clear S.",
    )
    passes: int = Field(ge=1, description="Predicting passes before the one that is trained.")

    @model_validator(mode="after")
    def _rate_falls(self) -> "ScheduledSamplingConfig":
        if self.end_rate > self.start_rate:
            raise ModelError(
                f"end_rate {self.end_rate} is above start_rate {self.start_rate}: "
                "scheduled sampling moves from true tokens to the model's own",
                "swap them",
            )
        return self


class MixedConfig(FrozenModel):
    """Some optimizer steps with scheduled sampling, the others standard, in a fixed ratio."""

    kind: Literal["mixed"] = "mixed"
    scheduled_share: Share = Field(description="Share of the steps with scheduled sampling.")
    scheduled: ScheduledSamplingConfig = Field(description="The scheduled steps' settings.")


class MixedByLengthConfig(FrozenModel):
    """Scheduled sampling for short answers, standard for long ones, within one batch."""

    kind: Literal["mixed_by_length"] = "mixed_by_length"
    longest: int = Field(gt=0, description="Supervised tokens up to which an example is scheduled.")
    scheduled: ScheduledSamplingConfig = Field(description="The scheduled examples' settings.")


ObjectiveConfig = Annotated[
    StandardConfig | ScheduledSamplingConfig | MixedConfig | MixedByLengthConfig,
    Field(discriminator="kind"),
]


def sampling_rate(config: ScheduledSamplingConfig, step: int, total_steps: int) -> float:
    """The probability of feeding the true token at `step`, in [end_rate, start_rate].

    Bengio et al. define the decays over the step i; here they are functions of the progress
    p = step / (total_steps - 1), so that a schedule has the same shape for any number of steps.
    With s = sharpness, the fall from start_rate (1) to end_rate (0) is:

    - linear: max(0, 1 - s p), their max(end, k - c i) with c = s (start - end) / steps.
    - exponential: exp(-s p), their k^i, shifted and scaled to end at 0. Their own form with an
      end of 0 would be 0 from the first step.
    - inverse sigmoid: 1 / (1 + exp(s (p - 1/2))), their k / (k + exp(i / k)) with its middle at
      half of the training, shifted and scaled to start at 1 and end at 0.

    Args:
        config: The schedule.
        step: Optimizer step, from 0; steps outside the training are clamped to it.
        total_steps: Optimizer steps of the whole training.
    """
    progress = min(max(step / max(1, total_steps - 1), 0.0), 1.0)
    sharpness = config.sharpness
    if config.decay == "linear":
        share = max(0.0, 1.0 - sharpness * progress)
    elif config.decay == "exponential":
        # expm1 keeps the ratio exact where the sharpness is close to 0 and both parts vanish.
        share = math.expm1(-sharpness * (1.0 - progress)) / math.expm1(-sharpness)
        share *= math.exp(-sharpness * progress)
    else:
        start, now, end = (_logistic(sharpness * (p - 0.5)) for p in (0.0, progress, 1.0))
        share = (now - end) / (start - end)
    # The clamp only removes rounding: a rate of exactly start or end is compared with == later.
    rate = config.end_rate + (config.start_rate - config.end_rate) * share
    return min(max(rate, config.end_rate), config.start_rate)


def is_scheduled_step(config: MixedConfig, step: int) -> bool:
    """Whether `step` uses scheduled sampling: any stretch of steps holds the share, to one step.

    Counting instead of drawing needs no random state, and all processes of a run agree.
    """
    return math.floor((step + 1) * config.scheduled_share) > math.floor(
        step * config.scheduled_share
    )


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(x))
