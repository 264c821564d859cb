"""The tables of examples, written as the examples come."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from pipeline.data.known_tokens import KEYS, MADE_BY
from pipeline.data.schemas import DROPS, EXAMPLES, QUESTIONS, TOKEN_KEYS
from pipeline.data.tokenized import questions_of
from storage.tables import TableWriter, list_column

Row = dict[str, Any]
_TOKENS = ("input_ids", "supervised")


class ExampleTables:
    """Numbers examples and their questions, and writes them with what was dropped.

    Args:
        folder: Gets `examples.parquet`, `questions.parquet`, `drops.parquet` and
            `token_keys.parquet`.
        made_by: Digest of the template that made the tokens.
    """

    def __init__(self, folder: Path, made_by: str) -> None:
        self._stack = ExitStack()
        self._examples = TableWriter(folder / "examples.parquet", EXAMPLES)
        self._keys = TableWriter(folder / KEYS, TOKEN_KEYS, {MADE_BY: made_by})
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
        self._keys.write(pa.table([pa.array([row["key"] for row in rows], pa.binary(16))], ["key"]))
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
        for writer in (self._examples, self._keys, self._questions, self._drops):
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
        columns = columns.append_column(field, list_column([row[name] for row in rows], field))
    return columns.select(EXAMPLES.names)
