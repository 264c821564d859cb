"""`phivision sql`: one statement, or a shell, on the catalog."""

import io
import sys
from pathlib import Path

import pyarrow as pa

from flows.tables import print_rows
from pipeline.errors import PipelineError
from storage.catalog import Catalog
from storage.errors import StorageError
from storage.sql import refuse_writing
from storage.tables import write_arrow

SHOWN = 200  # rows printed as a table
WIDTH = 120  # characters of one cell


def query_once(catalog: Catalog, query: str, style: str, output: Path | None) -> None:
    """Run one statement and print its result as table, csv, json or parquet.

    Raises:
        PipelineError: Parquet was asked for without a file to write it to.
        StorageError: The statement is wrong, or does more than read.
    """
    refuse_writing(query)
    with catalog.open(query) as database:
        result = database.read_only(query)
    if style == "parquet":
        if output is None:
            raise PipelineError("parquet is no text", "name a file with --output rows.parquet")
        write_arrow(output, result)
        return
    text = {"csv": _csv, "json": _json}.get(style)
    if text is None and output is None:
        _print(result)
    elif output is None:
        sys.stdout.write(text(result) if text else "")
    else:
        output.write_text(text(result) if text else _csv(result))


def shell(catalog: Catalog) -> None:
    """Read statements from the terminal until it ends; an error ends nothing."""
    print(f"views: {', '.join(catalog.views())}\nend a statement with ; and leave with Ctrl-D")
    database = catalog.open()
    pending = ""
    while True:
        try:
            line = input("   … " if pending else "sql> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        pending = f"{pending} {line}".strip()
        if pending.endswith(";"):
            try:
                _print(database.read_only(pending))
            except StorageError as error:
                print(error)
            pending = ""


def _print(result: pa.Table) -> None:
    rows = result.slice(0, SHOWN).to_pylist()
    cells = [[_cell(row[name]) for name in result.column_names] for row in rows]
    print_rows(result.column_names, cells)
    if len(result) > SHOWN:
        print(f"… {len(result) - SHOWN} more rows; --format csv prints all")


def _cell(value: object) -> str | None:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = None if value is None else str(value)
    return f"{text[:WIDTH]}…" if text and len(text) > WIDTH else text


def _csv(result: pa.Table) -> str:
    import csv

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(result.column_names)
    writer.writerows(row.values() for row in result.to_pylist())
    return stream.getvalue()


def _json(result: pa.Table) -> str:
    import json

    return json.dumps(result.to_pylist(), indent=1, default=str) + "\n"
