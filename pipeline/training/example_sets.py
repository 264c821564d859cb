"""Tokenized examples with their patch embeddings, in rows that share an image's prefix."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from model.projectors import ProjectorConfig
from model.training import MicroBatch
from pipeline.data.stored_images import Patches, open_patches
from pipeline.engine.stage import InputArtifact, StageContext
from pipeline.errors import PipelineError
from pipeline.recipe.parts import TrainingPart
from pipeline.training.collate import collate, shared_tokens, widened
from storage.tables import read_table, where

NO_IMAGE = -1  # in place of the row of an image's patches


class ExampleSet:
    """Tokenized examples of one split with their patch embeddings, in rows by image.

    Attributes:
        example_ids: Ids of the examples, int64 [example].
        rows: The examples of each row, by number and in the order of their ids.
        lengths: Text tokens of each row, int64 [row]; tokens that its examples share count once.
        targets: Supervised tokens of each row, int64 [row].

    Args:
        examples: The `examples` artifact.
        patches: Patch embeddings of all images.
        split: Which split.
        shares: How many examples of each kind, relative to the count of the first kind;
            `{"conversation": 1.0, "caption": 0.25}` takes all conversations and a quarter as many
            captions.
        seed: Chooses the examples of a kind that is not used completely.
        examples_per_row: Examples of one image that share a row, at most. An image with more
            gets several rows of nearly equal size.
        limit: Examples, at most; the seed chooses them from all kinds.
        text_only: Whether to take texts without an image, too.
        prefix: Tokens of an image, the separator included; only for examples with several images.
    """

    def __init__(
        self,
        examples: InputArtifact,
        patches: Patches,
        split: str,
        shares: dict[str, float],
        seed: int,
        examples_per_row: int = 1,
        limit: int | None = None,
        *,
        text_only: bool = True,
        prefix: int = 1,
    ) -> None:
        table = where(read_table(examples.path("examples.parquet")), split=split)
        if not text_only:
            table = table.filter(table["sha256"].is_valid())
        kinds = np.array(table["kind"].to_pylist())
        chosen = _chosen(kinds, shares, seed)
        if limit is not None and len(chosen) > limit:
            chosen = np.sort(np.random.default_rng([seed, 8]).permutation(chosen)[:limit])
        table = table.take(chosen)
        self.patches = patches
        self.example_ids = table["example_id"].to_numpy()
        self._sha256 = table["sha256"].to_pylist()
        more = table["more_sha256"].to_pylist()
        keys = _keys(self._sha256, more)
        self.rows = _rows_by_image(keys, self.example_ids, examples_per_row)
        self._input_ids = _ragged(table["input_ids"])
        self._supervised = _ragged(table["supervised"])
        self._images = _patch_rows(patches, self._sha256)
        self._more = {at: patches.rows_of(hashes) for at, hashes in enumerate(more) if hashes}
        for at in self._more:
            texts = self._input_ids[at], self._supervised[at]
            self._input_ids[at], self._supervised[at] = widened(*texts, prefix)
        self.lengths = _sums([len(ids) for ids in self._input_ids], self.rows) - self._saved()
        self.targets = _sums([int(mask.sum()) for mask in self._supervised], self.rows)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.example_ids)

    def micro_batch(self, rows: NDArray[np.int64], tokens: int) -> MicroBatch:
        """Return rows as one forward pass.

        Args:
            rows: Numbers of rows.
            tokens: Supervised tokens of the whole optimizer step.
        """
        chosen = [self.rows[row] for row in rows]
        examples = np.concatenate(chosen)
        images = self._images[[row[0] for row in chosen]]
        further = [self._more[at] for at in examples.tolist() if at in self._more]
        shown = [np.maximum(images, 0), *further]
        batch = collate(
            torch.from_numpy(self.patches.gather(np.concatenate(shown))),
            [self._input_ids[example] for example in examples],
            [self._supervised[example] for example in examples],
            [len(row) for row in chosen],
            None if (images != NO_IMAGE).all() else torch.from_numpy(images != NO_IMAGE),
        )
        return MicroBatch(
            batch,
            tokens,
            self.example_ids[examples].tolist(),
            text_tokens=int(self.lengths[rows].sum()),
            targets=int(self.targets[rows].sum()),
        )

    def _saved(self) -> NDArray[np.int64]:
        """Return how many tokens each row saves by sharing, against its examples one by one."""
        saved = []
        for row in self.rows:
            ids, targets = (
                [of[example] for example in row] for of in (self._input_ids, self._supervised)
            )
            saved.append(shared_tokens(ids, targets) * (len(row) - 1))
        return np.array(saved, np.int64)

    def in_order(self, size: int, rank: int = 0, processes: int = 1) -> Iterator[MicroBatch]:
        """Yield one process's share of all rows, shortest first, `size` at a time, for validation.

        All processes get the same number of batches, since they wait for each other in each. A
        process without a row for the last batch gets a row again, marked by 0 tokens.
        """
        order = np.argsort(self.lengths, kind="stable")
        for start in range(0, len(order), size * processes):
            chosen = order[start : start + size * processes]
            mine = chosen[rank::processes]
            if len(mine):
                yield self.micro_batch(mine, int(self.targets[mine].sum()))
            else:
                yield self.micro_batch(chosen[:1], 0)

    def some_patches(self, most: int) -> torch.Tensor:
        """Return patch embeddings of at most `most` images, [image, patch, vision] float32."""
        rows = np.unique(self._images[self._images != NO_IMAGE])[:most]
        return torch.from_numpy(self.patches.gather(rows)).float()

    def one_row_per_image(self) -> NDArray[np.int64]:
        """Return the number of the first row of each image, by the row of its patches.

        Rows with several images are left out.
        """
        alone = [at for at, row in enumerate(self.rows) if int(row[0]) not in self._more]
        images = self._images[[self.rows[at][0] for at in alone]]
        return np.array(alone, np.int64)[np.unique(images, return_index=True)[1]]

    def has_one_image(self, example: int) -> bool:
        """Return whether an example is about one image, neither none nor several."""
        return self._sha256[example] is not None and example not in self._more

    def opening(self, example: int) -> tuple[list[int], list[int]]:
        """Return the token ids before an example's first answer, and that answer's ids."""
        ids, supervised = self._input_ids[example], self._supervised[example]
        first = int(supervised.argmax())
        rest = np.flatnonzero(~supervised[first:])
        stop = first + int(rest[0]) if len(rest) else len(ids)
        return ids[:first].tolist(), ids[first:stop].tolist()

    def image(self, example: int) -> tuple[str, torch.Tensor]:
        """Return an example's image: the hash of its file and its patch embeddings."""
        patches = self.patches.gather(self._images[example : example + 1])[0]
        return self._sha256[example], torch.from_numpy(patches)


def has_captions(context: StageContext) -> bool:
    """Return whether any example is a caption."""
    path = context.inputs["examples"].path("examples.parquet")
    return bool(len(where(read_table(path, ["kind"]), kind="caption")))


def open_examples(
    context: StageContext,
    part: TrainingPart,
    projector: ProjectorConfig,
    shares: dict[str, float],
    seed: int,
    *,
    text_only: bool,
) -> tuple[ExampleSet, ExampleSet]:
    """Return the training examples and the validation examples of a training stage.

    Args:
        context: Its inputs hold the artifacts `examples` and `features`.
        part: How many examples share a row, and how many are held out at most.
        projector: Says how many tokens an image has.
        shares: See `ExampleSet`.
        seed: See `ExampleSet`.
        text_only: See `ExampleSet`.

    Raises:
        PipelineError: A split has no example.
    """
    patches = open_patches(context.inputs["features"])
    prefix = projector.tokens_out(patches.shape[0]) + 1
    sets = []
    for split, limit in (("train", None), ("validation", part.validation_examples)):
        examples = ExampleSet(
            context.inputs["examples"],
            patches,
            split,
            shares,
            seed,
            part.examples_per_row,
            limit,
            text_only=text_only,
            prefix=prefix,
        )
        if not len(examples):
            raise PipelineError(
                f"the {split} split has no example",
                "raise images.limit or images.validation_share, or look at the drops",
            )
        sets.append(examples)
    return sets[0], sets[1]


def _keys(
    sha256: Sequence[str | None], more: Sequence[Sequence[str] | None]
) -> NDArray[np.object_]:
    """Return what divides examples into rows: the image.

    For a text alone, or one about several images, it is the example's own number.
    """
    # Behind all hashes, so that these move no row of the others.
    keys = [key if key and not more[at] else f"~{at}" for at, key in enumerate(sha256)]
    return np.array(keys, object)


def _patch_rows(patches: Patches, sha256: Sequence[str | None]) -> NDArray[np.int64]:
    """Return the row of each example's patches, `NO_IMAGE` for a text alone."""
    rows = np.full(len(sha256), NO_IMAGE)
    known = [number for number, key in enumerate(sha256) if key is not None]
    rows[known] = patches.rows_of([str(sha256[number]) for number in known])
    return rows


def _rows_by_image(
    image: NDArray[np.object_], example_ids: NDArray[np.int64], examples_per_row: int
) -> list[NDArray[np.int64]]:
    """Return the numbers of the examples of each row; rows follow their images' hashes."""
    number = np.unique(image, return_inverse=True)[1]
    order = np.lexsort((example_ids, number))
    ends = np.flatnonzero(np.diff(number[order])) + 1
    rows = []
    for group in np.split(order, ends) if len(order) else []:
        rows += np.array_split(group, math.ceil(len(group) / examples_per_row))
    return rows


def _sums(values: Sequence[int], rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the sum of the examples' values in each row."""
    starts = np.cumsum([0, *map(len, rows)])[:-1]
    in_rows = np.array(values, np.int64)[np.concatenate([np.empty(0, np.int64), *rows])]
    return np.add.reduceat(in_rows, starts)


def _ragged(column: pa.ChunkedArray) -> list[NDArray]:
    chunk = column.combine_chunks()
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
