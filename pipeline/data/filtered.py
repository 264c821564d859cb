"""Captions and conversations with their reason to be dropped, some thousand at a time.

What needs all of them is computed from few columns before: which image a conversation is about, and
which texts are copies. So memory grows with the number of texts, and not with their length.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from pipeline.data.filters import (
    CAPTION_FILTERS,
    CAPTIONS_SQL,
    CONTENT_SQL,
    CONVERSATION_FILTERS,
    CONVERSATIONS_SQL,
    COPIES_SQL,
    MACROS,
    SHOWN_SQL,
    first_reason,
    parameters,
)
from pipeline.recipe.parts import ExamplesPart
from storage.sql.queries import Database

CAPTIONS_AT_ONCE, CONVERSATIONS_AT_ONCE = 65_536, 16_384
_CAPTION_VALUES = (
    "refusals",
    "caption_max_characters",
    "caption_min_words",
    "max_aspect_ratio",
)
_CONVERSATION_VALUES = ("forbidden_answers", "max_aspect_ratio")


def filtered_captions(
    captions: pa.Table, images: pa.Table, examples: ExamplesPart, rows: int = CAPTIONS_AT_ONCE
) -> Iterator[pa.Table]:
    """Yield all captions in the order of their ids, with their image's columns and `reason`.

    Args:
        captions: The `captions` table.
        images: The `images` table.
        examples: The filters' values.
        rows: Captions of one yielded table, at most.
    """
    keys = captions["caption_id"].to_numpy()
    if np.any(keys[1:] < keys[:-1]):
        captions = captions.take(pa.array(np.argsort(keys, kind="stable")))
    captions = captions.append_column("place", pa.array(np.arange(len(captions))))
    with Database({"captions": captions}, macros=MACROS) as database:
        copies = database.query(COPIES_SQL)["place"].to_numpy()
    marked = np.ones(len(captions), np.int8)
    marked[copies] = 2
    captions = captions.append_column("copy", pa.array(marked))
    sql = CAPTIONS_SQL.format(reason=first_reason(CAPTION_FILTERS))
    for start in range(0, len(captions), rows):
        sources = {"captions": captions.slice(start, rows), "images": images}
        with Database(sources, macros=MACROS) as database:
            yield database.query(sql, parameters(examples, _CAPTION_VALUES))


def filtered_conversations(
    names: pa.Table, conversations: Iterable[pa.Table], images: pa.Table, examples: ExamplesPart
) -> Iterator[pa.Table]:
    """Yield all conversations with their image's columns and `reason`.

    Args:
        names: `conversation_id`, `source` and `image_name` of all conversations.
        conversations: The `conversations` table in pieces, in the order of its ids.
        images: The `images` table.
        examples: The filters' values.
    """
    with Database({"conversations": names, "images": images}, macros=MACROS) as database:
        shown = database.query(SHOWN_SQL)
    sql = CONVERSATIONS_SQL.format(reason=first_reason(CONVERSATION_FILTERS))
    seen: set[bytes] = set()
    for some in conversations:
        with Database({"conversations": some, "shown": shown}) as database:
            contents = map(bytes.fromhex, database.query(CONTENT_SQL)["content"].to_pylist())
        copies = []
        for content in contents:
            copies.append(2 if content in seen else 1)
            seen.add(content)
        marked = some.append_column("copy", pa.array(copies, pa.int8()))
        sources = {"conversations": marked, "shown": shown}
        with Database(sources, macros=MACROS) as database:
            yield database.query(sql, parameters(examples, _CONVERSATION_VALUES))
