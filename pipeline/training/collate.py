"""Examples as one padded batch; those of one row share the text that they begin with."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model.batch import Batch
from model.prompt import IMAGE
from model.shared_rows import SHARED

Piece = tuple[NDArray, NDArray, int]  # ids, targets and segment


def collate(
    patches: torch.Tensor,
    input_ids: Sequence[NDArray],
    supervised: Sequence[NDArray],
    counts: Sequence[int] | None = None,
    has_image: torch.Tensor | None = None,
) -> Batch:
    """Return examples as one batch, padded on the right by position.

    Args:
        patches: Patch embeddings of each row [row, patch, vision], then of further images in the
            order of their places.
        input_ids: Token ids of each example [text], row after row; a further image is as many
            `IMAGE` as it has prefix tokens, see `widened`. Such an example has its own row.
        supervised: Which of these tokens are targets.
        counts: Examples of each row; None where each row is one example.
        has_image: False for rows of text alone; None where every row has an image.
    """
    pieces, ends = _pieces(input_ids, supervised, counts or [1] * len(input_ids))
    lengths = np.array([len(ids) for ids, _, _ in pieces], np.int64)
    totals = np.add.reduceat(lengths, [0, *ends[:-1]])
    attention = np.arange(totals.max()) < totals[:, None]

    def padded(values: NDArray) -> torch.Tensor:
        # A mask is filled row by row, which is the order in which the examples are given.
        rows = np.zeros(attention.shape, values.dtype)
        rows[attention] = values
        return torch.from_numpy(rows)

    segments = np.repeat(np.array([number for _, _, number in pieces], np.int64), lengths)
    text = padded(np.concatenate([ids for ids, _, _ in pieces]).astype(np.int64))
    slots = text == IMAGE
    return Batch(
        patches,
        text.masked_fill_(slots, 0),
        torch.from_numpy(attention),
        padded(np.concatenate([targets for _, targets, _ in pieces]).astype(np.bool_)),
        padded(segments) if max(counts or [1]) > 1 else None,
        has_image,
        slots if slots.any() else None,
    )


def widened(ids: NDArray, supervised: NDArray, prefix: int) -> tuple[NDArray, NDArray]:
    """Return an example with as many `IMAGE` for each further image as it has prefix tokens.

    Args:
        ids: Token ids [text], one `IMAGE` for each further image.
        supervised: Which of them are targets.
        prefix: Tokens of an image, the separator included.
    """
    counts = np.where(ids == IMAGE, prefix, 1)
    return np.repeat(ids, counts), np.repeat(supervised, counts)


def shared_tokens(input_ids: Sequence[NDArray], supervised: Sequence[NDArray]) -> int:
    """Return how many leading tokens, none of them a target, all examples of a row share."""
    if len(input_ids) == 1:
        return 0
    most = min(int(targets.argmax()) for targets in supervised)
    beginnings = np.stack([ids[:most] for ids in input_ids])
    return int((beginnings == beginnings[0]).all(axis=0).cumprod().sum())


def _pieces(
    input_ids: Sequence[NDArray], supervised: Sequence[NDArray], counts: Sequence[int]
) -> tuple[list[Piece], list[int]]:
    """Return what stands in the rows, piece by piece, and after which piece each row ends."""
    pieces: list[Piece] = []
    ends, first = [], 0
    for count in counts:
        ids, targets = input_ids[first : first + count], supervised[first : first + count]
        common = shared_tokens(ids, targets)
        if common:
            pieces.append((ids[0][:common], targets[0][:common], SHARED))
        pieces += [
            (ids[number][common:], targets[number][common:], number) for number in range(count)
        ]
        ends.append(len(pieces))
        first += count
    return pieces, ends
