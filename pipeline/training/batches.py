"""Training batches as a pure function of (seed, step): resuming needs no state of a loader.

A batch consists of rows; a row is an image with one or more examples about it, so that its prefix
is computed once for all of them.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model.training import MicroBatch
from pipeline.errors import PipelineError
from pipeline.training.example_sets import ExampleSet

BUCKET = 32  # batches over which rows are sorted by length


class TrainingBatches:
    """The micro-batches of every optimizer step.

    Args:
        examples: What to train on.
        batch: Rows per optimizer step, over all processes.
        micro_batch: Rows per forward pass of one process, at most.
        seed: Seed of the order.
        rank: Number of this process.
        processes: Number of all processes.

    Raises:
        PipelineError: The batch is too small to give every process a row for every pass.
    """

    def __init__(
        self,
        examples: ExampleSet,
        *,
        batch: int,
        micro_batch: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.examples, self.seed, self.batch = examples, seed, batch
        self.rank, self.processes = rank, processes
        # All processes take the same number of passes; the largest share decides.
        self.passes = math.ceil(math.ceil(batch / processes) / micro_batch)
        if batch // processes < self.passes:
            raise PipelineError(
                f"a batch of {batch} rows cannot be shared by {processes} devices",
                f"choose a batch that is a multiple of {processes}",
            )
        self.steps_per_epoch = max(1, len(examples.rows) // batch)
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def step(self, number: int) -> list[MicroBatch]:
        """Return this process's forward passes of one optimizer step."""
        epoch, place = divmod(number, self.steps_per_epoch)
        chosen = self._epoch(epoch)[place]
        tokens = int(self.examples.targets[chosen].sum())
        mine = chosen[self.rank :: self.processes]
        return [
            self.examples.micro_batch(part, tokens) for part in np.array_split(mine, self.passes)
        ]

    def _shuffled(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the batches of an epoch: shuffled, of similar length, in random order."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.examples.rows))
        if len(order) < self.batch:
            order = np.resize(order, self.batch)
        order = order[: self.steps_per_epoch * self.batch]
        for start in range(0, len(order), BUCKET * self.batch):
            part = order[start : start + BUCKET * self.batch]
            order[start : start + len(part)] = part[
                np.argsort(self.examples.lengths[part], kind="stable")
            ]
        batches = order.reshape(self.steps_per_epoch, self.batch)
        return list(batches[rng.permutation(len(batches))])
