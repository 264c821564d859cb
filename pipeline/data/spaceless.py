"""Scripts without spaces between words: their characters are counted and scored one by one.

Chinese, Japanese, Thai, Lao, Burmese and Khmer need a dictionary to find words, and no two
dictionaries agree. A character with its combining marks is an undisputed unit; published figures
for Chinese use it, too (sacreBLEU's tokenizer `zh`).
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

# Ranges that Python's `re` and DuckDB's RE2 both read. Digits are left out: they form numbers.
_LETTERS: Final = (
    ("Han", 0x2E80, 0x2FDF), ("Han", 0x3005, 0x3007), ("Han", 0x3400, 0x4DBF),
    ("Han", 0x4E00, 0x9FFF), ("Han", 0xF900, 0xFAFF), ("Han", 0x20000, 0x3FFFF),
    ("kana", 0x3041, 0x3096), ("kana", 0x309D, 0x309F), ("kana", 0x30A1, 0x30FA),
    ("kana", 0x30FC, 0x30FF), ("kana", 0x31F0, 0x31FF), ("kana", 0xFF66, 0xFF9D),
    ("Bopomofo", 0x3105, 0x312F), ("Bopomofo", 0x31A0, 0x31BF),
    ("Thai", 0x0E01, 0x0E30), ("Thai", 0x0E32, 0x0E33), ("Thai", 0x0E40, 0x0E46),
    ("Lao", 0x0E81, 0x0EB0), ("Lao", 0x0EB2, 0x0EB3), ("Lao", 0x0EBD, 0x0EC6),
    ("Lao", 0x0EDC, 0x0EDF),
    ("Burmese", 0x1000, 0x102A), ("Burmese", 0x103F, 0x103F), ("Burmese", 0x1050, 0x1055),
    ("Khmer", 0x1780, 0x17B3), ("Khmer", 0x17D7, 0x17D7), ("Khmer", 0x17DC, 0x17DC),
)  # fmt: skip
_MARKS: Final = (
    ("any", 0x0300, 0x036F), ("any", 0xFE00, 0xFE0F),
    ("Thai", 0x0E31, 0x0E31), ("Thai", 0x0E34, 0x0E3A), ("Thai", 0x0E47, 0x0E4E),
    ("Lao", 0x0EB1, 0x0EB1), ("Lao", 0x0EB4, 0x0EBC), ("Lao", 0x0EC8, 0x0ECE),
    ("Burmese", 0x102B, 0x103E), ("Burmese", 0x1056, 0x1059),
    ("Khmer", 0x17B4, 0x17D3), ("Khmer", 0x17DD, 0x17DD),
    ("kana", 0x3099, 0x309A), ("kana", 0xFF9E, 0xFF9F),
)  # fmt: skip


def _ranges(table: tuple[tuple[str, int, int], ...], form: str) -> str:
    return "".join(f"{form % low}-{form % high}" for _, low, high in table)


_UNIT: Final = re.compile(
    f"[{_ranges(_LETTERS, chr(92) + 'U%08x')}][{_ranges(_MARKS, chr(92) + 'U%08x')}]*"
)
# The same for SQL, where RE2 writes a character as \x{...}.
UNIT_SQL: Final = f"[{_ranges(_LETTERS, chr(92) + 'x{%x}')}][{_ranges(_MARKS, chr(92) + 'x{%x}')}]*"


def pieces(text: str) -> list[tuple[bool, str]]:
    """Split a text into the units of these scripts and the text between them.

    Returns:
        Whether a piece is a unit, and the piece; text between units may hold spaces and marks.
    """
    if text.isascii() or _UNIT.search(text) is None:
        return [(False, text)]
    return list(_pieces(unicodedata.normalize("NFC", text)))


def words(text: str) -> list[str]:
    """Return the words of a text, split at whitespace, and the units of scripts without spaces."""
    return [word for unit, piece in pieces(text) for word in ([piece] if unit else piece.split())]


def _pieces(text: str) -> Iterator[tuple[bool, str]]:
    end = 0
    for match in _UNIT.finditer(text):
        if match.start() > end:
            yield False, text[end : match.start()]
        yield True, match[0]
        end = match.end()
    if end < len(text):
        yield False, text[end:]
