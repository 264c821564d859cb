"""The image most similar to each image, so that near-duplicates can be seen and left out.

Similarity is the cosine of pooled embeddings, -1 to 1, rounded so that devices agree. All pairs are
compared: for COCO's 118,000 images 1.4e13 operations, where ViT-B/32 needs 1e15 to embed them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from storage.features.pooled import read_indexes

BLOCK = 512  # images that are compared with all others at once
_DIGITS = 4
NEAREST = pa.schema(
    [
        ("sha256", pa.string()),
        ("nearest_sha256", pa.string()),
        ("similarity", pa.float32()),
        ("duplicate_similarity", pa.float32()),
        ("test_similarity", pa.float32()),
    ]
)


class _Best(NamedTuple):
    """Of each image, the greatest similarity and where it is; -1 where there is no other image."""

    similarity: np.ndarray
    place: np.ndarray


def nearest_images(paths: Sequence[Path], device: str, tick: Callable[[int], None]) -> pa.Table:
    """Return one row per image with its nearest others, in the order of the indexes.

    The columns besides the nearest image are for filters: `duplicate_similarity` is that of the
    most similar image of the same split with a smaller hash, so that a limit keeps one image of
    each group; `test_similarity` is that of the most similar test image, null for test images.
    Either is null where there is none.
    """
    index = read_indexes(paths)
    hashes, splits = index["sha256"].to_pylist(), np.array(index["split"].to_pylist(), object)
    flat = index["pooled"].combine_chunks().flatten().to_numpy()
    pooled = torch.from_numpy(flat.reshape(len(hashes), -1).copy()).to(device)
    pooled = torch.nn.functional.normalize(pooled, dim=1)
    order = np.argsort(np.array(hashes, object)).argsort()
    blocks: list[tuple[_Best, _Best, _Best]] = []
    for start in range(0, len(hashes), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(hashes)))
        cosine = (pooled[start : start + BLOCK] @ pooled.T).cpu().numpy().round(_DIGITS)
        same = splits[rows, None] == splits[None, :]
        blocks.append(
            (
                _best(cosine, rows[:, None] != np.arange(len(hashes))),
                _best(cosine, same & (order[None, :] < order[rows, None])),
                _best(cosine, (splits == "test")[None, :] & (splits[rows] != "test")[:, None]),
            )
        )
        tick(len(rows))
    best, earlier, tested = (_joined(parts) for parts in zip(*blocks, strict=True))
    return pa.table(
        {
            "sha256": hashes,
            "nearest_sha256": [hashes[at] if at >= 0 else None for at in best.place.tolist()],
            "similarity": _nullable(best),
            "duplicate_similarity": _nullable(earlier),
            "test_similarity": _nullable(tested),
        },
        schema=NEAREST,
    )


def _best(cosine: np.ndarray, allowed: np.ndarray) -> _Best:
    """Return the best allowed column of each row; the first of equal ones."""
    masked = np.where(allowed, cosine, -np.inf)
    place = masked.argmax(axis=1)
    similarity = masked[np.arange(len(masked)), place]
    return _Best(similarity, np.where(np.isfinite(similarity), place, -1))


def _joined(parts: Sequence[_Best]) -> _Best:
    return _Best(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _nullable(best: _Best) -> pa.Array:
    return pa.array(best.similarity.astype(np.float32), mask=best.place < 0)
