"""LLaVA's JSON: records of a picture and the turns of a conversation about it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from storage.errors import redact
from storage.tables import is_text

_FOLDERS = re.compile(r"^.*[/\\]")
_PREFIX = re.compile(r"^COCO_(train|val)2014_")


def read_records(path: Path, name: str) -> list[Any]:
    """Return the records of a JSON list or of JSON lines, whichever the file holds.

    Published files lie about it: JSON lines named `.json` are common.

    Raises:
        PipelineError: It is neither; `name` is how its owner knows it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip()[:1] == "[":
            return json.loads(text)
        # Not splitlines: it also cuts at characters that JSON allows inside a text (U+2028).
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise PipelineError(
            f"{redact(name)} is neither a JSON list nor JSON lines: {error}",
            "give a file in LLaVA-Instruct's format",
        ) from None


def is_turn(turn: object) -> bool:
    """Return whether a value is one turn: who speaks, and what."""
    return isinstance(turn, dict) and is_text(turn.get("from")) and is_text(turn.get("value"))


def bare_name(name: str) -> str:
    """Return a picture's own file name, as `CONVERSATIONS_SQL` finds it.

    LLaVA's mixtures name a picture by path, or with the prefix of COCO 2014's splits.
    """
    return _PREFIX.sub("", _FOLDERS.sub("", name))


def record_id(record: Mapping[str, Any], number: int) -> str:
    """Return a record's own id as text, its number where it has none."""
    name = str(record.get("id", number))
    return name if is_text(name) else ascii(name)
