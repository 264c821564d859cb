"""Shards of images: their own bytes, by content."""

from pathlib import Path

import pyarrow as pa

from pipeline.data.schemas import IMAGE_FILES
from storage.tables import write_arrow

SHARD_BYTES = 256 * 2**20


class ImageShards:
    """Collects the images' own bytes into Parquet shards of about `SHARD_BYTES`.

    Args:
        folder: Gets the shards.
        largest: Bytes of the largest image that may come.
    """

    def __init__(self, folder: Path, largest: int) -> None:
        self.folder = folder
        # In the form that Arrow needs, and not one that grows: both would hold every byte twice.
        self.buffer = pa.allocate_buffer(SHARD_BYTES + largest)
        self.seen: set[bytes] = set()
        self.number = 0
        self._begin()

    def _begin(self) -> None:
        self.data = pa.FixedSizeBufferWriter(self.buffer)
        self.names: list[str] = []
        self.ends = [0]

    def add(self, sha256: str, data: bytes) -> None:
        """Add an image, unless its content is there."""
        key = bytes.fromhex(sha256)
        if key in self.seen:
            return
        self.seen.add(key)
        self.names.append(sha256)
        self.data.write(data)
        self.ends.append(self.ends[-1] + len(data))
        if self.ends[-1] >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is left; without any image, a shard without rows."""
        if self.names or not self.number:
            ends = pa.array(self.ends, pa.int32()).buffers()[1]
            buffers = [None, ends, self.buffer.slice(0, self.ends[-1])]
            data = pa.Array.from_buffers(pa.binary(), len(self.names), buffers)
            rows = pa.table([pa.array(self.names, pa.string()), data], IMAGE_FILES)
            path = self.folder / f"files-{self.number:05d}.parquet"
            write_arrow(path, rows, packed=("data",))
            self.number += 1
            self._begin()
