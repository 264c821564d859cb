"""The one learning-rate schedule: linear warm-up, then a cosine to zero."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, steps: int, warmup_share: float) -> LambdaLR:
    """Return a schedule to be stepped once per optimizer step.

    Args:
        optimizer: Its learning rates are the peaks.
        steps: Optimizer steps of the whole training.
        warmup_share: Share of the steps in which the rate rises.
    """
    warmup = max(1, round(steps * warmup_share))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)
