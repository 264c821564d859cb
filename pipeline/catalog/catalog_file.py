"""The catalog as a DuckDB file, which any DuckDB client can open without this program."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.catalog.catalog import BULKY, INDEXES, Catalog
from storage.errors import StorageError
from storage.sql.duckdb_file import quoted, write_duckdb
from storage.sql.queries import Source


def export_catalog(catalog: Catalog, path: Path, *, copy: bool) -> list[str]:
    """Write the catalog's views to a DuckDB file and return their names.

    Tables that stages wrote become views over the store's own Parquet files, so the file is small
    and stays valid as long as the store is not moved. Views that the catalog computes are copied.

    Args:
        catalog: What to export.
        path: The file; an older catalog there is replaced.
        copy: Copy all rows, except images and patch embeddings, so that the file can be moved.

    Raises:
        StorageError: The file is not a catalog, or cannot be written; or the store is remote and
            `copy` is false.
    """
    if not copy and not catalog.store.local:
        raise StorageError(
            f"views cannot point into {catalog.store.uri}", "copy the rows instead: --copy"
        )
    names = [name for name in catalog.views() if not (copy and name in BULKY)]
    return write_duckdb(path, _relations(catalog, names), copy=copy)


def _relations(catalog: Catalog, names: Sequence[str]) -> Iterator[tuple[str, pa.Table | str]]:
    for name in names:
        source = catalog.source(name)
        if isinstance(source, pa.Table) and name not in BULKY:
            yield name, source
        elif source is not None:
            yield name, _select(catalog, name, source)


def _select(catalog: Catalog, name: str, source: Source) -> str:
    """Return the statement that reads a view's rows, as the catalog has them, from files."""
    if isinstance(source, pa.Table):  # patches, whose keys are in the index files
        index, patches = (_parquet(catalog.paths(each)) for each in (INDEXES[name], name))
        return f"""
            SELECT f.sha256, f.image_id, f.shard, f.row, p.patches FROM read_parquet({index}) f
            JOIN read_parquet({patches}, filename = true, file_row_number = true) p
            ON f.row = p.file_row_number
            AND f.shard = regexp_extract(p.filename, 'patches-([0-9]+)[.]parquet$', 1)::INTEGER
        """  # noqa: S608 - our own names and quoted paths
    files = _parquet(source)
    if name in INDEXES.values():  # Parquet has no arrays of fixed length, which similarity needs
        width = pq.read_schema(source[0]).field("pooled").type.list_size
        return f"FROM read_parquet({files}) SELECT * REPLACE (pooled::FLOAT[{width}] AS pooled)"
    return f"FROM read_parquet({files})"


def _parquet(paths: Sequence[Path]) -> str:
    return f"[{', '.join(quoted(str(path.resolve())) for path in paths)}]"
