"""Rounds: what Lightning calls an epoch is here a fixed number of optimizer steps.

A checkpoint is then always between two rounds, and resuming there needs no state of a loader or
generator, because a round's batches are a pure function of its number.
"""

import math
from collections.abc import Iterator

import lightning as L

from model.training import MicroBatch
from pipeline.recipe.parts import TrainingPart
from pipeline.training.batches import TrainingBatches
from pipeline.training.example_sets import ExampleSet


class Rounds(L.LightningDataModule):
    """Gives Lightning the micro-batches of the current round, and the validation set."""

    def __init__(
        self, batches: TrainingBatches, validation: ExampleSet, part: TrainingPart, steps: int
    ) -> None:
        super().__init__()
        self.batches, self.validation, self.part, self.steps = batches, validation, part, steps
        self.count = math.ceil(steps / part.validate_every)

    def train_dataloader(self) -> "Round":
        """Return the micro-batches of the trainer's current round."""
        assert self.trainer is not None
        start = self.trainer.current_epoch * self.part.validate_every
        return Round(self.batches, start, min(start + self.part.validate_every, self.steps))

    def val_dataloader(self) -> "Validation":
        """Return the validation examples."""
        batches = self.batches
        return Validation(self.validation, self.part.micro_batch, batches.rank, batches.processes)


class Round:
    """The micro-batches of a range of optimizer steps, as an iterable of known length."""

    def __init__(self, batches: TrainingBatches, start: int, stop: int) -> None:
        self.batches, self.start, self.stop = batches, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.batches.passes

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in range(self.start, self.stop):
            yield from self.batches.step(step)


class Validation:
    """This process's share of the validation set, in a fixed order."""

    def __init__(self, examples: ExampleSet, size: int, rank: int, processes: int) -> None:
        self.examples, self.size, self.rank, self.processes = examples, size, rank, processes

    def __len__(self) -> int:
        return math.ceil(len(self.examples.rows) / (self.size * self.processes))

    def __iter__(self) -> Iterator[MicroBatch]:
        return self.examples.in_order(self.size, self.rank, self.processes)
