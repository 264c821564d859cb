"""The catalog as a DuckDB file, which any DuckDB client opens, without this program."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StorageError
from storage.sql.catalog import BULKY, Catalog
from storage.sql.queries import Source

_MAGIC = b"DUCK"  # at byte 8 of every DuckDB file
_VERSION = "v1.2.0"  # of the file format; clients from there on can open it


def export_catalog(catalog: Catalog, path: Path, *, copy: bool) -> list[str]:
    """Write the catalog's views to a DuckDB file and return their names.

    Tables that stages wrote become views over the store's own Parquet files, so the file is small
    and stays right as long as the store stays where it is. What the catalog computes is copied.

    Args:
        catalog: What to export.
        path: The file; an older catalog there is replaced.
        copy: Copy all rows, except images and patch embeddings, so that the file can travel.

    Raises:
        StorageError: The file is something else, or cannot be written; or the store is remote and
            rows are not to be copied.
    """
    if path.exists() and not _is_duckdb(path):
        raise StorageError(f"{path} is not a DuckDB file", "name a new file, it is not overwritten")
    if not copy and not catalog.store.local:
        raise StorageError(
            f"views cannot point into {catalog.store.uri}", "copy the rows instead: --copy"
        )
    names = [name for name in catalog.views() if not (copy and name in BULKY)]
    partial = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        with duckdb.connect(":memory:") as connection:
            place = _quoted(str(partial.resolve()))
            connection.execute(f"ATTACH {place} AS made (STORAGE_VERSION '{_VERSION}')")
            written = [name for name in names if _add(connection, catalog, name, copy=copy)]
            connection.execute("DETACH made")
        partial.replace(path)
    except (duckdb.Error, OSError) as error:
        raise StorageError(f"{path} cannot be written: {str(error).splitlines()[0]}") from None
    finally:
        with suppress(OSError):  # after success there is none; after a failure that one is told
            partial.unlink()
    return written


def _add(connection: duckdb.DuckDBPyConnection, catalog: Catalog, name: str, *, copy: bool) -> bool:
    source = catalog.source(name)
    if source is None:
        return False
    if isinstance(source, pa.Table) and name not in BULKY:
        connection.register("rows", source)
        connection.execute(f"CREATE TABLE made.{name} AS FROM rows")
        connection.unregister("rows")
        return True
    kind = "TABLE" if copy else "VIEW"
    connection.execute(f"CREATE {kind} made.{name} AS {_select(catalog, name, source)}")
    return True


def _select(catalog: Catalog, name: str, source: Source) -> str:
    """Return the statement that reads a view's rows, as the catalog has them, from files."""
    if isinstance(source, pa.Table):  # `patches`, whose keys stand in the indexes
        index, patches = (_parquet(catalog.paths(each)) for each in ("features", "patches"))
        return f"""
            SELECT f.sha256, f.image_id, f.shard, f.row, p.patches FROM read_parquet({index}) f
            JOIN read_parquet({patches}, filename = true, file_row_number = true) p
            ON f.row = p.file_row_number
            AND f.shard = regexp_extract(p.filename, 'patches-([0-9]+)[.]parquet$', 1)::INTEGER
        """  # noqa: S608 - our own names and quoted paths
    files = _parquet(source)
    if name == "features":  # Parquet has no arrays of fixed length, which similarity needs
        width = pq.read_schema(source[0]).field("pooled").type.list_size
        return f"FROM read_parquet({files}) SELECT * REPLACE (pooled::FLOAT[{width}] AS pooled)"
    return f"FROM read_parquet({files})"


def _parquet(paths: Sequence[Path]) -> str:
    return f"[{', '.join(_quoted(str(path.resolve())) for path in paths)}]"


def _is_duckdb(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(12)[8:] == _MAGIC


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
