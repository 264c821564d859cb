"""The patch embeddings of two encoders as one table, joined by position when they are read.

Each encoder's shards hold the grid that it gives, so that one encoder can be replaced, or the grid
changed, without embedding anything with the other again.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from model.joined_encoders import join
from pipeline.errors import PipelineError
from storage.features.patches import PatchTable

_AT_ONCE = 64  # images in float32 together: 75 MB of a grid of 16 by 16 and width 1,152


class JoinedPatches:
    """Two tables of the same images in the same order, read as one; see `PatchTable`.

    Args:
        first: The first encoder's embeddings.
        second: The second one's.
        patches: Positions of the grid to which both are resampled.

    Raises:
        PipelineError: The tables hold different images.
    """

    def __init__(self, first: PatchTable, second: PatchTable, patches: int) -> None:
        if not first.hashes.equals(second.hashes):
            raise PipelineError(
                f"the encoders' shards hold different images ({len(first)} and {len(second)})",
                "`phivision verify` finds a damaged artifact; run the stage features again",
            )
        self.first, self._second, self._patches = first, second, patches

    def __len__(self) -> int:
        return len(self.first)

    @property
    def shape(self) -> tuple[int, int]:
        """Positions per image, and the width of both encoders together."""
        return self._patches, self.first.shape[1] + self._second.shape[1]

    @property
    def index(self) -> pa.Table:
        """The first encoder's index columns of all rows, in row order."""
        return self.first.index

    def rows_of(self, sha256: Sequence[str]) -> NDArray[np.int64]:
        """Row numbers of images by content, int64 [image].

        Raises:
            ShardError: An image has no row.
        """
        return self.first.rows_of(sha256)

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Joined embeddings of images in the order asked for, float16 [image, patch, width].

        Raises:
            IndexError: A row number is out of range.
            ShardError: A file is damaged.
        """
        joined = np.empty((len(rows), *self.shape), np.float16)
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            tables = (self.first, self._second)
            both = [torch.from_numpy(table.gather(part)) for table in tables]
            joined[start : start + _AT_ONCE] = join(both, self._patches).numpy()
        return joined
