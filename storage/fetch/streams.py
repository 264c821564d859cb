"""A stream: the bytes of one remote object from an offset on, and which object that is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stream:
    """The bytes of one object from `start` on.

    Attributes:
        start: Offset of the first byte that `read` gives: the one asked for, or 0 where the object
            changed or the server ignores Range.
        total: Bytes of the whole object, None where the server does not say.
        version: Size, ETag and times, as far as known; see `agrees`.
        kind: Content type, "" where unknown.
        read: Returns the next bytes, b"" at the end.
        close: Frees the connection.
    """

    start: int
    total: int | None
    version: dict[str, str]
    kind: str
    read: Callable[[], bytes]
    close: Callable[[], None]


def agrees(known: Mapping[str, str], current: Mapping[str, str]) -> bool:
    """Return whether two versions agree in all fields that both have."""
    return all(known[field] == current[field] for field in known.keys() & current.keys())
