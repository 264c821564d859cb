"""Filters that a user writes in the recipe: a name, and SQL that says which rows to drop.

They see one relation, `rows`: the examples that all other filters have left, one row each, with
the columns below. Their DuckDB has no access to files, the network or other relations.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import PipelineError
from storage.errors import StorageError
from storage.sql.queries import Database, predicate_fault

# Column, type, and what it holds.
COLUMNS = (
    ("source", pa.string(), "name of the source in a mixture, else the kind of source"),
    ("kind", pa.string(), "caption or conversation"),
    ("split", pa.string(), "train, validation or test"),
    ("image_id", pa.int64(), "id of the image"),
    ("file_name", pa.string(), "file of the image"),
    ("width", pa.int32(), "pixels"),
    ("height", pa.int32(), "pixels"),
    ("text", pa.string(), "the caption, or the turns with their prefixes, a line break between"),
    ("characters", pa.int64(), "length of text"),
    ("tokens", pa.int64(), "length of text in tokens, the end mark included"),
    ("turns", pa.int64(), "question/answer turns; 0 for a caption"),
    ("questions", pa.list_(pa.string()), "questions of a conversation; empty for a caption"),
    ("answers", pa.list_(pa.string()), "answers of a conversation; empty for a caption"),
    (
        "clip_score",
        pa.float32(),
        "cosine similarity of a caption to its image; null for conversations",
    ),
    (
        "duplicate_similarity",
        pa.float32(),
        "cosine similarity of the image to the most similar one of its split that has a smaller "
        "hash, so that one of a group is kept; null if there is none",
    ),
    (
        "test_similarity",
        pa.float32(),
        "cosine similarity of the image to the most similar test image; null for test images",
    ),
)
ROWS = pa.schema([("row", pa.int64()), *((name, kind) for name, kind, _ in COLUMNS)])

# The line break ends a comment at the end of a predicate.
_DROPPED = "SELECT row FROM rows WHERE (\n{}\n)"
_BOUND = "SELECT 1 FROM rows WHERE (\n{}\n)"
_TYPE = "SELECT typeof(\n{}\n) AS kind FROM (VALUES (1)) LEFT JOIN rows ON false"


def filters_fault(filters: Mapping[str, str]) -> str:
    """Return what is wrong with the first filter that is not a predicate, "" if none is."""
    for name, predicate in filters.items():
        if not name.strip() or not name.isprintable():
            return f"{name!r} is not a valid name for a reason"
        fault = predicate_fault(predicate) or _unbound(predicate)
        if fault:
            return f"{name!r} ({predicate!r}): {fault}"
    return ""


def apply_filters(filters: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return the reason of each row to be dropped, by row number; the first by name wins.

    Args:
        filters: SQL predicates by name. A row is dropped where its predicate is true, not where
            it is null.
        rows: Values of `COLUMNS`.

    Raises:
        PipelineError: A predicate cannot be computed for some row; names the filter.
    """
    if not filters:
        return {}
    numbered = [{"row": number, **row} for number, row in enumerate(rows)]
    table = pa.Table.from_pylist(numbered, schema=ROWS)
    reasons: dict[int, str] = {}
    for name in sorted(filters, reverse=True):
        try:
            with Database({"rows": table}) as database:
                dropped = database.query(_DROPPED.format(filters[name]))
        except StorageError as error:
            raise PipelineError(
                f"filter {name!r} of examples.filters cannot be computed: {error}",
                "try_cast and coalesce help with odd rows",
            ) from None
        reasons |= dict.fromkeys(dropped.column("row").to_pylist(), name)
    return reasons


def _unbound(predicate: str) -> str:
    """Return why a predicate does not fit the columns, "" if it does."""
    with Database({"rows": ROWS.empty_table().drop_columns("row")}) as database:
        try:
            database.query(_BOUND.format(predicate))
            kind = database.query(_TYPE.format(predicate)).column("kind")[0].as_py()
        except StorageError as error:
            names = ", ".join(name for name, _, _ in COLUMNS)
            return f"{str(error).splitlines()[0]} (columns: {names})"
    return "" if kind == "BOOLEAN" else f"it gives {kind}, not true or false"
