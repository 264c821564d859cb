"""Reading images and their patch embeddings back out of their artifacts."""

from collections.abc import Collection, Iterator

from PIL import Image

from model.decoding import decode_image
from pipeline.engine.stage import InputArtifact
from storage.features.patches import PatchTable
from storage.tables import read_table

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


def open_patches(features: InputArtifact) -> PatchTable:
    """Return the patch embeddings of a `features` artifact as one table."""
    pairs = zip(features.paths("index-*.parquet"), features.paths("patches-*.parquet"), strict=True)
    return PatchTable(list(pairs))
