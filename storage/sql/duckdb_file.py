"""Tables and views in a DuckDB file, which any DuckDB client opens, without this program."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import duckdb
import pyarrow as pa

from storage.errors import StorageError

_MAGIC = b"DUCK"  # at byte 8 of every DuckDB file
_VERSION = "v1.2.0"  # of the file format; clients from there on can open it


def write_duckdb(
    path: Path, relations: Iterable[tuple[str, pa.Table | str]], *, copy: bool
) -> list[str]:
    """Write relations to a DuckDB file, whole or not at all, and return their names.

    Args:
        path: The file; an older DuckDB file there is replaced.
        relations: Names with rows, which become tables, or with SELECT statements.
        copy: Make tables of the statements' rows, and not views.

    Raises:
        StorageError: The file is something else, or cannot be written.
    """
    if path.exists() and not _is_duckdb(path):
        raise StorageError(f"{path} is not a DuckDB file", "name a new file: this one is kept")
    partial = path.with_name(f".{path.name}.tmp")
    written = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        with duckdb.connect(":memory:") as connection:
            place = quoted(str(partial.resolve()))
            connection.execute(f"ATTACH {place} AS made (STORAGE_VERSION '{_VERSION}')")
            for name, rows in relations:
                if isinstance(rows, pa.Table):
                    connection.register("rows", rows)
                    connection.execute(f"CREATE TABLE made.{name} AS FROM rows")
                    connection.unregister("rows")
                else:
                    kind = "TABLE" if copy else "VIEW"
                    connection.execute(f"CREATE {kind} made.{name} AS {rows}")
                written.append(name)
            connection.execute("DETACH made")
        partial.replace(path)
    except (duckdb.Error, OSError) as error:
        raise StorageError(f"{path} cannot be written: {str(error).splitlines()[0]}") from None
    finally:
        with suppress(OSError):  # gone after success; after a failure, that error is reported
            partial.unlink()
    return written


def quoted(text: str) -> str:
    """Return a text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def _is_duckdb(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(12)[8:] == _MAGIC
