"""The tables of examples, written as the examples come."""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipeline.data.schemas import DROPS, EXAMPLES, QUESTIONS
from pipeline.data.tokenized import questions_of
from storage.tables import TableWriter

Row = dict[str, Any]
_TOKENS = ("input_ids", "supervised")  # long lists, which Arrow takes faster as one array


class ExampleTables:
    """Numbers examples and their questions, and writes them with what was dropped.

    Args:
        folder: Gets `examples.parquet`, `questions.parquet` and `drops.parquet`.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._examples = TableWriter(folder / "examples.parquet", EXAMPLES)
        self._questions = TableWriter(folder / "questions.parquet", QUESTIONS)
        self._drops = TableWriter(folder / "drops.parquet", DROPS)
        self._late: list[pa.Table] = []
        self._examples_done = self._questions_done = 0

    def add(self, rows: Sequence[Row], drops: Sequence[Row], late: Sequence[Row]) -> None:
        """Write some examples and drops; `late` ones are written behind all others."""
        for number, row in enumerate(rows, self._examples_done):
            row["example_id"] = number
        self._examples_done += len(rows)
        self._examples.write(_table(rows))
        asked = [
            {"question_id": number, **row}
            for number, row in enumerate(questions_of(rows), self._questions_done)
        ]
        self._questions_done += len(asked)
        self._questions.write_rows(asked)
        self._drops.write_rows(drops)
        if late:
            self._late.append(pa.Table.from_pylist(list(late), DROPS))

    def __enter__(self) -> Self:
        """Return itself."""
        for writer in (self._examples, self._questions, self._drops):
            self._stack.enter_context(writer)
        return self

    def __exit__(self, *failure: Any) -> None:
        """Finish the files, or remove them after an error."""
        if failure[0] is None:
            for table in self._late:
                self._drops.write(table)
        self._stack.__exit__(*failure)


def _table(rows: Sequence[Row]) -> pa.Table:
    plain = pa.schema([field for field in EXAMPLES if field.name not in _TOKENS])
    columns = pa.Table.from_pylist(list(rows), plain)
    for name in _TOKENS:
        field = EXAMPLES.field(name)
        lists = [row[name] for row in rows]
        ends = np.cumsum([0, *map(len, lists)], dtype=np.int32)
        kind = field.type.value_type
        flat = np.fromiter(chain.from_iterable(lists), kind.to_pandas_dtype(), int(ends[-1]))
        column = pa.ListArray.from_arrays(pa.array(ends), pa.array(flat, kind), field.type)
        columns = columns.append_column(field, column)
    return columns.select(EXAMPLES.names)
