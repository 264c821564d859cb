"""Results as DuckDB prints them: one table, from which columns that do not fit are left out."""

import io
from contextlib import redirect_stdout

import duckdb
import pyarrow as pa


def boxed(table: pa.Table, width: int, rows: int) -> str:
    """Return a result as text no wider than `width` characters."""
    text = io.StringIO()
    with duckdb.connect(":memory:") as connection, redirect_stdout(text):
        shown = connection.from_arrow(table)
        shown.show(max_width=width, max_rows=rows, null_value="")
    return text.getvalue().rstrip("\n")
