"""Reading long JSON lists record by record, with the values and the errors of `json.loads`.

The standard library's own parser reads each record, so that whatever it takes is taken here (NaN,
lone surrogates, numbers of any length), and no more text is held than the longest record needs.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pipeline.data.json_text import GZIP, LARGEST

CHUNK = 1 << 20  # bytes
_BLANK = re.compile(r"[ \t\n\r]*")
# What a text that is cut inside a value can still become valid with: `1e+`, `"\ud83d\ude`.
_CUT = 16
_AFTER_VALUES = frozenset(",]}:")
_DECODER = json.JSONDecoder()


def text_chunks(path: Path, size: int = CHUNK) -> Iterator[str]:
    """Yield the text of a JSON file as `json_text` returns it whole.

    Raises:
        ValueError: It is not text in an encoding of JSON, or its gzip is damaged or too large.
    """
    with path.open("rb") as file:
        yield from chunks_of(file, size)


def chunks_of(file: BufferedReader, size: int = CHUNK) -> Iterator[str]:
    """Yield the text of an open JSON file, with the errors of `text_chunks`."""
    packed = file.peek(len(GZIP)).startswith(GZIP)
    chunks = _unpacked(file, size) if packed else iter(lambda: file.read(size), b"")
    yield from _decoded(chunks)


def without_first(chunks: Iterator[str], count: int) -> Iterator[str]:
    """Yield a text in pieces without its first characters."""
    for chunk in chunks:
        if count < len(chunk):
            yield chunk[count:]
        count = max(count - len(chunk), 0)


def _unpacked(raw: BinaryIO, size: int) -> Iterator[bytes]:
    total = 0
    try:
        with gzip.GzipFile(fileobj=raw) as packed:
            while chunk := packed.read(size):
                total += len(chunk)
                if total > LARGEST:
                    raise ValueError(f"it has more than {LARGEST} bytes when unpacked")
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"the gzip is damaged or cut short ({error})") from None


def _decoded(chunks: Iterator[bytes]) -> Iterator[str]:
    first = b""
    while len(first) < 4 and (chunk := next(chunks, b"")):  # by which the encoding is recognised
        first += chunk
    encoding = json.detect_encoding(first)
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    # Positions in errors count from behind a mark that belongs to the encoding.
    start = -len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0
    chunk = first
    while True:
        before = start - len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise _moved(error, max(before, 0)) from None
        start += len(chunk)
        if text:
            yield text
        if not chunk:
            return
        chunk = next(chunks, b"")


def _moved(error: UnicodeDecodeError, by: int) -> ValueError:
    """Return an error about a chunk with its position in the file."""
    first, last = error.start + by, error.end - 1 + by
    where = f"bytes in position {first}-{last}"
    if first == last:
        where = f"byte 0x{error.object[error.start]:02x} in position {first}"
    return ValueError(f"'{error.encoding}' codec can't decode {where}: {error.reason}")


class ListAt(NamedTuple):
    """Stands for a list in the outline of a text.

    Attributes:
        start: Characters before it.
    """

    start: int


class ListReader:
    """Reads a text that is one JSON list, or has lists that are longer than memory.

    Args:
        chunks: The text in pieces of any size.
        decoder: Reads the records.
    """

    def __init__(self, chunks: Iterator[str], decoder: json.JSONDecoder = _DECODER) -> None:
        self._chunks, self._decoder = chunks, decoder
        self._text, self._at = "", 0
        # What was read and is no longer held: characters, line breaks, and characters of the line.
        self._chars = self._lines = self._column = 0

    def begins_list(self) -> bool:
        """Return whether the first character that is not blank begins a list."""
        while not (start := self._text.lstrip()) and self._more():
            pass
        return start[:1] == "["

    def records(self) -> Iterator[Any]:
        """Yield the list's values.

        Raises:
            ValueError: It is not a list with nothing behind it; with the place in the text.
        """
        yield from self.first_list()
        self._expect_end()

    def first_list(self) -> Iterator[Any]:
        """Yield the values of a list, whatever is behind it.

        Raises:
            ValueError: The text does not begin with a list; with the place in the text.
        """
        if self._next() != "[":
            raise self._error("Expecting value", self._at)
        self._at += 1
        if self._next() == "]":
            self._at += 1
        else:
            yield from self._values()

    def outline(self) -> Any:
        """Return the text's value, with `ListAt` in place of its lists.

        Lists are left out down to the fields of an object in an object.

        Raises:
            ValueError: The text is not JSON; with the place in the text.
        """
        value = self._outlined(2)
        self._expect_end()
        return value

    def _outlined(self, depth: int) -> Any:
        first = self._next()
        if first == "[":
            place = ListAt(self._chars + self._at)
            for _ in self.first_list():
                pass
            return place
        return self._fields(depth - 1) if first == "{" and depth else self._value()

    def _fields(self, depth: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        self._at += 1
        if self._next() == "}":
            self._at += 1
            return fields
        while True:
            if self._next() != '"':
                message = "Expecting property name enclosed in double quotes"
                raise self._error(message, self._at)
            name = self._value()
            if self._next() != ":":
                raise self._error("Expecting ':' delimiter", self._at)
            self._at += 1
            fields[name] = self._outlined(depth)
            if not self._goes_on("}", _COMMA_IN_OBJECT):
                return fields

    def _expect_end(self) -> None:
        if self._next():
            raise self._error("Extra data", self._at)

    def _values(self) -> Iterator[Any]:
        """Yield values up to the bracket behind the last one."""
        while True:
            yield self._value()
            if not self._goes_on("]", _COMMA_IN_LIST):
                return

    def _goes_on(self, end: str, fault: tuple[str, bool]) -> bool:
        """Go behind the comma or the end of a list or object; return whether there was a comma."""
        delimiter = self._next()
        if delimiter not in {",", end}:
            raise self._error("Expecting ',' delimiter", self._at)
        if delimiter == end:
            self._at += 1
            return False
        after = self._after_blanks(1)
        if self._text[after : after + 1] == end:
            message, at_comma = fault
            raise self._error(message, self._at if at_comma else after)
        self._at = after
        return True

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or self._near_end(error.pos)
                if not (is_cut and self._more()):
                    raise self._error(error.msg, error.pos) from None
                continue
            # A number may go on.
            follows = _BLANK.match(self._text, end)
            assert follows is not None  # it matches the empty text, too
            whole = self._text[follows.end() : follows.end() + 1] in _AFTER_VALUES
            if whole or not self._near_end(end) or not self._more():
                self._at = end
                return value

    def _near_end(self, place: int) -> bool:
        return place > len(self._text) - _CUT

    def _next(self) -> str:
        """Go to the next character that is not blank, and return it; "" at the end."""
        self._at = self._after_blanks(0)
        return self._text[self._at : self._at + 1]

    def _after_blanks(self, skip: int) -> int:
        """Return the place of the next character that is not blank, so many behind this one."""
        while True:
            blanks = _BLANK.match(self._text, self._at + skip)
            assert blanks is not None  # it matches the empty text, too
            if blanks.end() < len(self._text) or not self._more():
                return blanks.end()

    def _more(self) -> bool:
        """Read on, at least as much as is held, and forget what was read; False at the end."""
        parts, left = [], max(len(self._text) - self._at, 1)
        while left > 0 and (chunk := next(self._chunks, "")):
            parts.append(chunk)
            left -= len(chunk)
        if not parts:
            return False
        at, text = self._at, self._text
        self._chars += at
        self._lines += text.count("\n", 0, at)
        line = text.rfind("\n", 0, at)
        self._column = at - line - 1 if line >= 0 else self._column + at
        self._text, self._at = "".join((text[at:], *parts)), 0
        return True

    def _error(self, message: str, place: int) -> ValueError:
        """Return an error as `json.loads` words it, about a place in the text that is held."""
        line = self._lines + self._text.count("\n", 0, place) + 1
        start = self._text.rfind("\n", 0, place)
        column = place - start if start >= 0 else self._column + place + 1
        char = self._chars + place
        return ValueError(f"{message}: line {line} column {column} (char {char})")


def _trailing_comma(text: str) -> tuple[str, bool]:
    """Return how this Python words a comma behind the last value, and whether it points there."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg, text[error.pos] == ","
    raise AssertionError("a comma behind the last value is not JSON")


_COMMA_IN_LIST, _COMMA_IN_OBJECT = _trailing_comma("[0,]"), _trailing_comma('{"a":0,}')
