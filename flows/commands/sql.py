"""`phivision sql`: one statement on the catalog, printed for people or for programs."""

import io
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.printing import print_rows
from pipeline.catalog.catalog import Catalog
from pipeline.errors import PipelineError
from storage.sql.queries import boxed, refuse_writing
from storage.tables import write_arrow

SHOWN = 200  # rows printed as a table
WIDTH = 120  # characters of one cell
TALL = 3  # rows printed one below the other at most
LEAST = 20  # characters a long cell should get on a line


def query_once(catalog: Catalog, query: str, style: str, output: Path | None) -> None:
    """Run one statement and print its result as table, csv, json or parquet.

    Raises:
        PipelineError: Parquet was asked for without a file to write it to, or that is a folder.
        StorageError: The statement is wrong, or does more than read.
    """
    if output is not None and output.is_dir():
        raise PipelineError(f"{output} is a folder", f"name a file: --output {output / 'rows.csv'}")
    refuse_writing(query)
    if style == "parquet" and output is None:
        raise PipelineError("parquet is a binary format", "name a file with --output rows.parquet")
    result = catalog.query(query, printable=style != "parquet")
    if output is None:
        print_as(result, style)
    else:
        write_as(result, style, output)


def print_as(result: pa.Table, style: str) -> None:
    """Print a result as table, csv or json."""
    if style == "table":
        print_result(result)
    else:
        sys.stdout.write(_csv(result) if style == "csv" else _json(result))


def write_as(result: pa.Table, style: str, output: Path) -> None:
    """Write a result to a file as csv, json or parquet; a table becomes csv."""
    if style == "parquet":
        write_arrow(output, result)
    else:
        text = _json(result) if style == "json" else _csv(result)
        output.write_text(text, encoding="utf-8")


def print_result(result: pa.Table) -> None:
    """Print a result as a table; where its columns do not fit, a few rows one by one.

    More rows become one table without the columns in the middle.
    """
    from rich.console import Console

    rows = result.slice(0, SHOWN).to_pylist()
    names = result.column_names
    cells = [[_cell(row[name]) for name in names] for row in rows]
    narrow = [
        max(len(name), *(min(len(c or ""), LEAST) for c in cs)) for name, cs in _by(names, cells)
    ]
    width = Console().width
    fits = sum(narrow) + 2 * len(names) <= width
    if len(rows) > TALL and not fits:
        print(boxed(result, width, SHOWN))
        print("--format csv prints every column; a wider terminal shows more of them")
    elif rows and not fits:
        for number, row in enumerate(cells):
            print(f"─ row {number + 1}")
            print_rows(["column", "value"], [list(pair) for pair in zip(names, row, strict=True)])
    else:
        print_rows(names, cells)
    if len(result) > SHOWN:
        print(f"… {len(result) - SHOWN} more rows; --format csv prints all")


def _by(names: list[str], cells: list[list[str | None]]) -> Iterator[tuple[str, list[str | None]]]:
    """Yield each column with its cells."""
    for at, name in enumerate(names):
        yield name, ["", *(row[at] for row in cells)]


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
    writer.writerows(_texts(list(row.values())) for row in result.to_pylist())
    return stream.getvalue()


def _json(result: pa.Table) -> str:
    import json

    rows = _numbers(_texts(result.to_pylist()))
    return json.dumps(rows, indent=1, default=str, allow_nan=False) + "\n"


def _texts(value: Any) -> Any:
    """Return a value with its bytes, however deep, as hexadecimal digits."""
    return _with_leaves(value, lambda leaf: leaf.hex() if isinstance(leaf, bytes) else leaf)


def _numbers(value: Any) -> Any:
    """Return a value with null for what JSON has no number for: NaN and infinities."""
    return _with_leaves(
        value,
        lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf,
    )


def _with_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _with_leaves(each, change) for name, each in value.items()}
    if isinstance(value, list | tuple):  # Arrow's maps are lists of pairs
        return type(value)(_with_leaves(each, change) for each in value)
    return change(value)
