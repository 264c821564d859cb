"""File names that look the same to people: accents in one or two characters, capitals, widths.

macOS writes an accented letter as two characters, most others as one, and people see the same name.
Names that differ in more than that are different names; one that differs in capitals is only told.
"""

import unicodedata
from collections.abc import Iterable


def composed(name: str) -> str:
    """Return the form in which names are compared: Unicode's NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """Return a form that names share if people may take one for the other."""
    return unicodedata.normalize("NFKC", name).casefold()


class Alikes:
    """Tells of a name that is not there which other one may be meant.

    Args:
        names: Paths that are there.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._known = {folded(_base(name)): name for name in sorted(names, reverse=True)}

    def hint(self, name: str) -> str:
        """Return "there is OTHER" where a base name looks like this one, else ""."""
        found = self._known.get(folded(_base(name)))
        same = found is None or composed(_base(found)) == composed(_base(name))
        return "" if same else f"there is {found}"


def _base(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]
