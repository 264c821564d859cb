"""Conversations about several images: which images the further ones are, and where they belong.

The first image of a record is found with all the others (`pipeline.data.filters`). A further one
is found by the same rules, and is dropped with its whole conversation if it is not found.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from model.prompt import IMAGE_MARK, MARKER, placed
from pipeline.data.filters import MORE_SQL
from pipeline.data.schemas import CONVERSATIONS
from storage.sql.queries import Database

Row = dict[str, Any]
Pair = tuple[str, str]  # question and answer


class Further(NamedTuple):
    """A further image of a conversation."""

    image_id: int
    sha256: str


def add_further(conversations: Sequence[Row], images: pa.Table, macros: Sequence[str]) -> None:
    """Write the further images of each conversation into its row, as `further`.

    Where one cannot be used, its conversation has that `reason`, and its name as `image_name`.

    Args:
        conversations: With `source`, `split` of the first image, `image_name`, `more_images` and
            `reason`, which stays if it is not None.
        images: The `images` table.
        macros: SQL macros of the filters.
    """
    named = [(row, name) for row in conversations for name in row["more_images"] or ()]
    for row in conversations:
        row["further"] = []
    if not named:
        return
    rows = [
        {"conversation_id": number, "source": row["source"], "image_name": name}
        for number, (row, name) in enumerate(named)
    ]
    table = pa.Table.from_pylist(rows, CONVERSATIONS)
    with Database({"conversations": table, "images": images}, macros=macros) as database:
        further_images = database.query(MORE_SQL).to_pylist()
    for (row, name), image in zip(named, further_images, strict=True):
        row["further"].append(Further(image["image_id"], image["sha256"]))
        fault = _fault(row, image)
        if fault and row["reason"] is None:
            row["reason"], row["image_name"] = fault, name


def _fault(row: Row, image: Row) -> str:
    if image["matches"] != 1:
        return "ambiguous image" if image["matches"] else "image missing"
    return "" if image["split"] == row["split"] else "images of several splits"


def placed_pairs(texts: Sequence[str]) -> tuple[int, list[Pair]]:
    """Return how many further images stand in front, and turns with marks for the others.

    Args:
        texts: Questions and answers in turn, with a marker for each image.
    """
    more, first = placed(texts[0])
    questions = [first, *(text.replace(MARKER, IMAGE_MARK) for text in texts[2::2])]
    return more, list(zip(questions, texts[1::2], strict=True))


def named_in(pairs: Sequence[Pair]) -> int:
    """Return how many images the questions name."""
    return sum(question.count(IMAGE_MARK) for question, _ in pairs)


def readable(text: str) -> str:
    """Return a text with the markers of a dataset, as tables hold it."""
    return text.replace(IMAGE_MARK, MARKER)


def of_turn(
    further: Sequence[Further], more: int, pairs: Sequence[Pair], turn: int
) -> list[Further]:
    """Return the further images that a question alone is about.

    These are the ones in front of the conversation, and those that it names itself.
    """
    before = more + named_in(pairs[:turn])
    return [*further[:more], *further[before : before + named_in(pairs[turn : turn + 1])]]
