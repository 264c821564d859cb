"""Small pictures for a page, read out of the files that hold the dataset's ones."""

from collections.abc import Iterable

import pyarrow.compute as pc

from flows.pages.page import thumbnail
from storage.catalog import Catalog
from storage.tables import read_table


def pictures_of(catalog: Catalog, wanted: Iterable[str]) -> dict[str, str | None]:
    """Return small pictures by the hash of their content; those that the store has.

    Of a file that holds none of them only the hashes are read, and only one file at a time: a
    query over all of them reads, and holds, the bytes of every picture.

    Args:
        catalog: The catalog whose run is shown.
        wanted: Hashes; those that are in no file are left out.

    Raises:
        StorageError: A file cannot be read.
    """
    manifest, missing = catalog.manifest("images"), set(wanted)
    paths = catalog.store.artifact(manifest).paths("files-*.parquet") if manifest else []
    found: dict[str, str | None] = {}
    for path in paths:
        here = missing.intersection(read_table(path, ["sha256"])["sha256"].to_pylist())
        if here:
            rows = read_table(path).filter(pc.field("sha256").isin(sorted(here))).to_pylist()
            found |= {row["sha256"]: thumbnail(row["data"]) for row in rows}
            missing -= here
        if not missing:
            break
    return found
