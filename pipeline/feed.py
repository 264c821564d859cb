"""Training batches as a pure function of (seed, step): resuming needs no state of a loader."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from model.training import MicroBatch
from model.vlm import Batch
from pipeline.stage import InputArtifact
from storage.patches import PatchTable
from storage.tables import read_table

BUCKET = 32  # batches whose examples are sorted by length together


class ExampleSet:
    """Tokenized examples of one split beside their patch embeddings.

    Args:
        examples: The `examples` artifact.
        patches: Patch embeddings of all pictures.
        split: Which split.
        shares: How many examples of each kind, as a number relative to the first kind's count;
            `{"conversation": 1.0, "caption": 0.25}` takes all conversations and captions until
            they are a quarter as many.
        seed: Chooses which examples of a kind that is cut short.
    """

    def __init__(
        self,
        examples: InputArtifact,
        patches: PatchTable,
        split: str,
        shares: dict[str, float],
        seed: int,
    ) -> None:
        table = read_table(examples.path("examples.parquet"))
        table = table.filter(pc.equal(table["split"], split))
        kinds = np.array(table["kind"].to_pylist())
        chosen = _chosen(kinds, shares, seed)
        table = table.take(chosen)
        self.patches = patches
        self.example_ids = table["example_id"].to_numpy()
        self.input_ids = _ragged(table["input_ids"])
        self.supervised = _ragged(table["supervised"])
        self.rows = patches.rows_of(table["sha256"].to_pylist())
        self.lengths = np.array([len(ids) for ids in self.input_ids], np.int64)
        self.targets = np.array([int(mask.sum()) for mask in self.supervised], np.int64)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.rows)

    def batch(self, chosen: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return examples as one right-padded batch."""
        patches = torch.from_numpy(self.patches.gather(self.rows[chosen]))
        ids = [self.input_ids[example] for example in chosen]
        return collate(patches, ids, [self.supervised[example] for example in chosen])

    def in_order(self, size: int) -> Iterator[MicroBatch]:
        """Yield all examples, shortest first, for validation."""
        order = np.lexsort((self.example_ids, self.lengths))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            tokens = int(self.targets[chosen].sum())
            yield MicroBatch(self.batch(chosen), tokens, self.example_ids[chosen].tolist())


def collate(
    patches: torch.Tensor, input_ids: Sequence[NDArray], supervised: Sequence[NDArray]
) -> Batch:
    """Return examples as one batch, padded on the right by position."""
    longest = max(map(len, input_ids))
    ids = torch.zeros(len(input_ids), longest, dtype=torch.int64)
    attention = torch.zeros(len(input_ids), longest, dtype=torch.bool)
    targets = torch.zeros(len(input_ids), longest, dtype=torch.bool)
    for row, (tokens, mask) in enumerate(zip(input_ids, supervised, strict=True)):
        ids[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        targets[row, : len(tokens)] = torch.from_numpy(mask.astype(np.bool_))
        attention[row, : len(tokens)] = True
    return Batch(patches, ids, attention, targets)


class TrainingFeed:
    """The micro-batches of every optimizer step.

    Args:
        examples: What to train on.
        batch: Examples per optimizer step, over all processes.
        micro_batch: Examples per forward pass of one process.
        seed: Seed of the order.
        rank: Number of this process.
        processes: Number of all processes.
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
        self.examples, self.seed = examples, seed
        self.batch, self.micro_batch = batch, micro_batch
        self.rank, self.processes = rank, processes
        self.passes = max(1, batch // (micro_batch * processes))
        self.steps_per_epoch = max(1, len(examples) // batch)
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def step(self, number: int) -> list[MicroBatch]:
        """Return this process's forward passes of one optimizer step."""
        epoch, place = divmod(number, self.steps_per_epoch)
        chosen = self._epoch(epoch)[place]
        tokens = int(self.examples.targets[chosen].sum())
        mine = chosen[self.rank :: self.processes]
        ids = self.examples.example_ids
        return [
            MicroBatch(self.examples.batch(part), tokens, ids[part].tolist())
            for part in np.array_split(mine, self.passes)
        ]

    def _shuffled(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the batches of an epoch: shuffled, of similar length, in random order."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.examples))
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


def _ragged(column: object) -> list[NDArray]:
    chunk = column.combine_chunks()  # ty: ignore[unresolved-attribute]
    values = chunk.values.to_numpy(zero_copy_only=False)
    offsets = chunk.offsets.to_numpy()
    return [values[a:b] for a, b in pairwise(offsets)]


def _chosen(kinds: NDArray, shares: dict[str, float], seed: int) -> NDArray[np.int64]:
    first = next(iter(shares))
    base = int((kinds == first).sum())
    rng = np.random.default_rng([seed, 7])
    parts = []
    for kind, share in shares.items():
        rows = np.flatnonzero(kinds == kind)
        count = min(len(rows), round(share * base))
        parts.append(np.sort(rng.permutation(rows)[:count]))
    return np.concatenate(parts).astype(np.int64)
