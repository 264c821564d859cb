"""LLaVA's JSON: records of an image and the turns of a conversation about it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.data.json_stream import ListReader, text_chunks
from pipeline.errors import PipelineError
from storage.errors import redact
from storage.tables import is_text


def read_records(path: Path, name: str) -> Iterator[Any]:
    """Yield the records of a JSON list, of an object around one, or of JSON lines.

    The suffix says nothing: published JSON lines are often named `.json`. A list and lines are read
    record by record, an object whole.

    Raises:
        PipelineError: It is none of them, or damaged at the next record; the message calls the file
            `name`.
    """
    try:
        reader = ListReader(text_chunks(path))
        if reader.begins_list():
            yield from reader.records()
        else:
            yield from _read_lines(path)
    except (ValueError, RecursionError) as error:
        raise PipelineError(
            f"{redact(name)} is neither a JSON list nor JSON lines: {error}",
            "give a file in LLaVA-Instruct's format",
        ) from None


def _read_lines(path: Path) -> Iterator[Any]:
    """Yield the values of JSON lines, or the records of one object on several lines.

    Raises:
        ValueError: It is neither, with the line of the file.
    """
    first: list[Any] = []  # until there is a second one
    count = 0
    for number, line in enumerate(_lines(text_chunks(path)), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            if not count:  # perhaps one object on several lines; otherwise the error names the line
                yield from _records_of(json.loads("".join(text_chunks(path))))
                return
            raise ValueError(f"line {number} column {error.colno}: {error.msg}") from None
        count += 1
        if count == 1:
            first = [value]
            continue
        yield from first
        first = []
        yield value
    yield from _records_of(*first) if first else ()


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text in pieces.

    Not splitlines: it also cuts at characters that JSON allows inside a text (U+2028).
    """
    rest: list[str] = []
    for chunk in chunks:
        head, *others = chunk.split("\n")
        rest.append(head)
        if others:
            yield "".join(rest)
            yield from others[:-1]
            rest = others[-1:]
    yield "".join(rest)


def _records_of(value: Any) -> list[Any]:
    """Return the records of an object that holds a list of them, else the value as one record.

    Raises:
        ValueError: It holds several lists.
    """
    if not isinstance(value, dict) or "image" in value:
        return [value]
    lists = {
        key: each
        for key, each in value.items()
        if isinstance(each, list) and any(isinstance(record, dict) for record in each)
    }
    talking = {
        key: each for key, each in lists.items() if any("conversations" in _keys(r) for r in each)
    }
    if "conversations" in lists and not talking:
        return [value]  # a conversation without an image
    lists = talking or lists
    if len(lists) > 1:
        raise ValueError(
            f"it is an object with the lists {', '.join(map(repr, lists))}, not a list"
        )
    return next(iter(lists.values()), [value])


def _keys(record: object) -> set[str]:
    return set(record) if isinstance(record, dict) else set()


def is_turn(turn: object) -> bool:
    """Return whether a value is one turn: who speaks, and what."""
    return isinstance(turn, dict) and is_text(turn.get("from")) and is_text(turn.get("value"))


def images_of(record: object) -> list[str] | None:
    """Return the names of a record's images, none for a text alone; None where they are broken."""
    images = record.get("image") if isinstance(record, dict) else None
    if images is None:
        return []
    listed = images if isinstance(images, list) else [images]
    return [str(name) for name in listed] if listed and all(map(is_text, listed)) else None


def record_id(record: Mapping[str, Any], number: int) -> str:
    """Return a record's own id as text, its number where it has none."""
    name = str(record.get("id", number))
    return name if is_text(name) else ascii(name)
