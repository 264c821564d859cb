"""File names that look the same: accents as one or two characters, case, character widths.

macOS writes an accented letter as two characters, most other systems as one: these names are equal
here. Names that differ in case or width are different; the error only suggests the other name.
"""

import unicodedata
from collections.abc import Iterable


def composed(name: str) -> str:
    """Return the form in which names are compared: Unicode's NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """Return a form that is equal for names that are easily confused."""
    return unicodedata.normalize("NFKC", name).casefold()


class Alikes:
    """Suggests an existing name for one that is missing.

    Args:
        names: Existing paths.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._known = {folded(_base(name)): name for name in sorted(names, reverse=True)}

    def hint(self, name: str) -> str:
        """Return "there is OTHER" where a base name looks like this one, else ""."""
        other = self._known.get(folded(_base(name)))
        same = other is None or composed(_base(other)) == composed(_base(name))
        return "" if same else f"there is {other}"


def _base(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]
