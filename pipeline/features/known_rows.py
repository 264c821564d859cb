"""Rows that were embedded before: found through manifests, but they may be gone.

An image is embedded once per (sha256 of its file, encoder fingerprint), however many datasets and
subsets it is part of. The invariant: a row found here has the same bits as a newly computed one, so
a stage that reuses rows writes the same bytes as one that does not.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.engine.stage import InputArtifact
from storage.errors import StorageError
from storage.features.patches import PatchTable
from storage.features.shards import verify_shard
from storage.tables import read_table


class KnownRow(NamedTuple):
    """Where the embeddings of one image are: both files of a shard, and the row."""

    index: Path
    patches: Path
    row: int


def find_known(
    artifacts: Iterable[InputArtifact], encoder: str, wanted: Collection[str]
) -> dict[str, KnownRow]:
    """Return where the wanted images are in earlier artifacts, by sha256.

    Only index files are read, and of a remote store only shards with a wanted row are fetched.
    Such a shard is verified completely, because its rows will be written again with new checksums:
    a flipped bit would then never be detected. A shard that is damaged or was removed meanwhile is
    left out.

    Args:
        artifacts: Artifacts of the `features` stage.
        encoder: Fingerprint that the rows must have.
        wanted: Hashes of the images.
    """
    rows_of: dict[str, KnownRow] = {}
    left = set(wanted)
    for artifact in artifacts:
        for indexes in _by_encoder(artifact.names) if left else ():
            for name in indexes:
                try:
                    here = _in_shard(artifact, name, encoder, left)
                except (StorageError, OSError, pa.ArrowException):
                    continue
                if here is None:
                    break  # the shards of one folder have one encoder
                rows_of |= here
                left -= here.keys()
    return rows_of


def _by_encoder(names: Sequence[str]) -> list[list[str]]:
    """Return the names of an artifact's index files, those of each encoder in a list."""
    indexes = [name for name in names if PurePosixPath(name).name.startswith("index-")]
    return [list(group) for _, group in groupby(indexes, key=lambda name: name.rpartition("/")[0])]


def read_known(rows: Sequence[KnownRow]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Return patches [image, patch, width] and pooled embeddings [image, pooled] of known rows.

    Raises:
        ShardError: A shard is gone or damaged.
    """
    order = sorted(range(len(rows)), key=lambda at: rows[at])
    patches, pooled = [], []
    for (index, path), group in groupby(order, key=lambda at: rows[at][:2]):
        table = PatchTable([(index, path)])
        places = np.array([rows[at].row for at in group], np.int64)
        vectors = table.index["pooled"].combine_chunks().take(places)
        patches.append(table.gather(places))
        pooled.append(vectors.flatten().to_numpy().reshape(len(places), -1))
    back = np.argsort(order)
    return np.concatenate(patches)[back], np.concatenate(pooled)[back]


def _in_shard(
    artifact: InputArtifact, name: str, encoder: str, wanted: Collection[str]
) -> dict[str, KnownRow] | None:
    """Return the wanted rows of one shard, verified; None if another encoder made it."""
    index = artifact.path(name)
    metadata = pq.read_schema(index).metadata or {}
    if metadata.get(b"phivision.encoder") != encoder.encode():
        return None
    keys = read_table(index, ["sha256"])["sha256"].to_pylist()
    rows = {key: row for row, key in enumerate(keys) if key in wanted}
    if not rows:
        return {}
    patches = artifact.path(f"{name[: -len(index.name)]}{index.name.replace('index-', 'patches-')}")
    verify_shard(index.parent, int(index.stem.removeprefix("index-")))
    return {key: KnownRow(index, patches, row) for key, row in rows.items()}
