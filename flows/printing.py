"""Printing rows for people."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_rows(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, unbroken: Sequence[str] = ()
) -> None:
    """Print rows as a table on standard output; text is never read as markup.

    Args:
        columns: Headings.
        rows: One cell per column; None is an empty one.
        unbroken: Columns whose cells are never broken over lines.
    """
    Console(soft_wrap=False).print(table_of(columns, rows, unbroken=unbroken))


def table_of(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    whole: bool = False,
    unbroken: Sequence[str] = (),
) -> Table:
    """Return rows as a table.

    Args:
        columns: Headings.
        rows: One cell per column; None is an empty one.
        whole: Never break a cell over lines, whatever the width.
        unbroken: The same of single columns.
    """
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=whole or column in unbroken)
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return table


def metric_name(row: Mapping[str, Any]) -> str:
    """Return the name of a row of the `metrics` view, with its split where that is not `test`."""
    return row["metric"] if row["split"] == "test" else f"{row['metric']} ({row['split']})"


def when(seconds: float) -> str:
    """Return seconds since 1970 as a date and a time, in UTC."""
    import datetime

    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S}"


def condition_order(conditions: Iterable[str]) -> list[str]:
    """Return conditions in the order of reading: real, shuffled, blind, then baselines by name."""
    from pipeline.data.schemas import CONDITIONS

    present = set(conditions)
    return [
        *(name for name in CONDITIONS if name in present),
        *sorted(present.difference(CONDITIONS)),
    ]
