"""The tables of examples, written as the examples come."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from pipeline.data.known_tokens import KEYS, MADE_BY
from pipeline.data.made_examples import MadeExamples
from pipeline.data.schemas import DROPS, EXAMPLES, QUESTIONS, TOKEN_KEYS
from storage.tables import TableWriter


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

    def add(self, made: MadeExamples) -> None:
        """Add some examples and drops; `late` drops are written behind all others."""
        self._examples.write(_counted_from(made.examples, "example_id", self._examples_done))
        self._keys.write(made.keys)
        questions = _counted_from(made.questions, "example_id", self._examples_done)
        self._questions.write(_counted_from(questions, "question_id", self._questions_done))
        self._drops.write(made.drops)
        self._examples_done += len(made.examples)
        self._questions_done += len(made.questions)
        if len(made.late):
            self._late.append(made.late)

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


def _counted_from(table: pa.Table, name: str, first: int) -> pa.Table:
    """Return a table whose numbers in a column are larger by that of the first row."""
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), pa.array(table[name].to_numpy() + first))
