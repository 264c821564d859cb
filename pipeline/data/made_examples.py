"""Examples of some thousand texts as tables, which may have been made in another process."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa

from pipeline.data.further_images import of_turn, readable
from pipeline.data.schemas import DROPS, EXAMPLES, QUESTIONS, TOKEN_KEYS
from storage.tables import as_table, list_column, read_table, write_arrow

Row = dict[str, Any]
_TOKENS = ("input_ids", "supervised")
USED = pa.schema(
    [
        ("split", pa.string()),
        ("kind", pa.string()),
        ("image_id", pa.int64()),
        ("sha256", pa.string()),
        ("text_id", pa.int64()),  # of a text without an image
    ]
)
_COUNTS = pa.schema([("tokenized", pa.int64())])
_SCHEMAS = {
    "examples": EXAMPLES,
    "keys": TOKEN_KEYS,
    "questions": QUESTIONS,
    "drops": DROPS,
    "late": DROPS,
    "used": USED,
    "counts": _COUNTS,
}


class MadeExamples(NamedTuple):
    """What some texts became.

    Attributes:
        examples: Numbered from 0.
        keys: Row by row the keys of their tokens.
        questions: Of held-out conversations, numbered from 0, as are the examples that they name.
        drops: Texts that became no example.
        late: Examples that the recipe's own filters dropped.
        used: Which images the examples show, by split and kind.
        counts: One row: how many texts were tokenized, since their tokens were not known.
    """

    examples: pa.Table
    keys: pa.Table
    questions: pa.Table
    drops: pa.Table
    late: pa.Table
    used: pa.Table
    counts: pa.Table

    @classmethod
    def of(
        cls, rows: Sequence[Row], drops: Sequence[Row], late: Sequence[Row], tokenized: int
    ) -> Self:
        """Return the tables of example rows and of what was dropped."""
        for number, row in enumerate(rows):
            row["example_id"] = number
        asked = [{"question_id": at, **row} for at, row in enumerate(_questions(rows))]
        keys = [pa.array([row["key"] for row in rows], pa.binary(16))]
        return cls(
            _examples(rows),
            pa.table(keys, TOKEN_KEYS),
            as_table("questions.parquet", asked, QUESTIONS),
            as_table("drops.parquet", drops, DROPS),
            as_table("drops.parquet", late, DROPS),
            used_images(rows),
            pa.table([[tokenized]], _COUNTS),
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the tables that `write` left in a folder.

        Raises:
            StorageError: One is not there or damaged.
        """
        tables = {name: read_table(folder / f"{name}.parquet") for name in _SCHEMAS}
        # Files have another name for the items of lists.
        return cls(**{name: table.cast(_SCHEMAS[name]) for name, table in tables.items()})

    def write(self, folder: Path) -> None:
        """Write the tables to files of a folder."""
        for name, table in self._asdict().items():
            write_arrow(folder / f"{name}.parquet", table)


def used_images(rows: Sequence[Row]) -> pa.Table:
    """Return which images example rows show, each once for every split and kind."""
    used = {
        (
            row["split"],
            row["kind"],
            row["image_id"],
            row["sha256"],
            None if row["sha256"] else row["source_id"],
        )
        for row in rows
    }
    used |= {(row["split"], "", *image, None) for row in rows for image in row["further"]}
    columns = [list(column) for column in zip(*used, strict=True)] or [[] for _ in USED]
    return pa.table(columns, USED)


def _examples(rows: Sequence[Row]) -> pa.Table:
    plain = pa.schema([field for field in EXAMPLES if field.name not in _TOKENS])
    columns = pa.Table.from_pylist(list(rows), plain)
    for name in _TOKENS:
        field = EXAMPLES.field(name)
        columns = columns.append_column(field, list_column([row[name] for row in rows], field))
    return columns.select(EXAMPLES.names)


def _questions(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the questions of held-out conversations, one for each turn."""
    for row in rows:
        if row["split"] == "train":
            continue
        for turn, (question, answer) in enumerate(row["pairs"]):
            shown = of_turn(row["further"], row["more"], row["pairs"], turn)
            yield {
                "example_id": row["example_id"],
                "source": row["source"],
                "split": row["split"],
                "image_id": row["image_id"],
                "sha256": row["sha256"],
                "more_sha256": [image.sha256 for image in shown],
                "turn": turn,
                "question": readable(question),
                "answer": answer,
            }
