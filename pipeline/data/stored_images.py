"""Reading images and their patch embeddings back out of their artifacts."""

import json
from collections.abc import Collection, Iterator

from PIL import Image

from model.decoding import decode_image
from model.encoder_table import SECOND
from pipeline.data.joined_patches import JoinedPatches
from pipeline.engine.stage import InputArtifact
from storage.features.patches import PatchTable
from storage.tables import read_table

JOINED = "joined.json"  # of a `features` artifact of two encoders: the grid they are joined on
Patches = PatchTable | JoinedPatches
NO_LIMIT = 2**62  # the `images` stage has already refused larger images


def image_bytes(images: InputArtifact, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield `(sha256, file content)` of the wanted images, one shard in memory at a time."""
    for path in images.paths("files-*.parquet"):
        table = read_table(path)
        for sha256, data in zip(table["sha256"], table["data"], strict=True):
            key = sha256.as_py()
            if key in wanted:
                yield key, data.as_py()


def read_images(
    images: InputArtifact, wanted: Collection[str]
) -> Iterator[tuple[str, Image.Image]]:
    """Yield `(sha256, RGB image)` of the wanted images."""
    for sha256, data in image_bytes(images, wanted):
        yield sha256, decode_image(data, NO_LIMIT)


def has_second(artifact: InputArtifact) -> bool:
    """Return whether an artifact of `backbones` or `features` is one of two encoders."""
    return any(name.startswith(f"{SECOND}/") for name in artifact.names)


def open_patches(features: InputArtifact) -> Patches:
    """Return the patch embeddings of a `features` artifact as one table.

    Those of two encoders are joined by position, on the grid that the recipe asked for.

    Raises:
        PipelineError: The encoders' shards hold different images.
        ShardError: A file is missing, damaged or does not fit the others.
    """
    first = open_first(features)
    if not has_second(features):
        return first
    patches = json.loads(features.path(JOINED).read_text())["patches"]
    return JoinedPatches(first, _table(features, f"{SECOND}/"), patches)


def open_first(features: InputArtifact) -> PatchTable:
    """Return the first encoder's patch embeddings, on the grid that it gives.

    Raises:
        ShardError: A file is missing, damaged or does not fit the others.
    """
    return _table(features, "")


def _table(features: InputArtifact, folder: str) -> PatchTable:
    names = (f"{folder}index-*.parquet", f"{folder}patches-*.parquet")
    return PatchTable(list(zip(*map(features.paths, names), strict=True)))
