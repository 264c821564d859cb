"""Small images for a page, read from the dataset's files of images."""

from collections.abc import Iterable, Iterator

import pyarrow.compute as pc

from flows.pages.page import THUMBNAIL, thumbnail
from pipeline.catalog.catalog import Catalog
from storage.tables import read_table


def images_of(
    catalog: Catalog, wanted: Iterable[str], side: int = THUMBNAIL, webp: int | None = None
) -> dict[str, str | None]:
    """Return small images by the hash of their content, those that the store has.

    Args:
        catalog: The catalog whose run is shown.
        wanted: Hashes; those that are in no file are left out.
        side: Pixels of the longer side, at most.
        webp: Quality of a WebP; a JPEG of good quality if None.

    Raises:
        StorageError: A file cannot be read.
    """
    return {
        sha256: thumbnail(data, side, webp=webp) for sha256, data in contents_of(catalog, wanted)
    }


def contents_of(catalog: Catalog, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the hash and the content of image files, those that the store has.

    Files are read one at a time, and only the hashes of a file that has none of the images: a
    query over all files would read, and hold, the bytes of every image.

    Raises:
        StorageError: A file cannot be read.
    """
    manifest, missing = catalog.manifest("images"), set(wanted)
    paths = catalog.store.artifact(manifest).paths("files-*.parquet") if manifest else []
    for path in paths:
        here = missing.intersection(read_table(path, ["sha256"])["sha256"].to_pylist())
        if here:
            rows = read_table(path).filter(pc.field("sha256").isin(sorted(here))).to_pylist()
            yield from ((row["sha256"], row["data"]) for row in rows)
            missing -= here
        if not missing:
            break
