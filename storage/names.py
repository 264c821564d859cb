"""Which names from archives and datasets are safe: relative paths that stay below their root.

One rule for every system: a name that Windows would read differently is refused on Linux too, so
that a dataset means the same files everywhere.
"""

import re

from storage.errors import UnsafeArchiveError

_LONGEST_PART = 255  # bytes of one name that every common filesystem takes
_LONGEST_SHOWN = 120
_DRIVE = re.compile(r"[A-Za-z]:")
# Almost every name is plain; checking this first halves the time to open COCO's archive.
_PLAIN = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}/)*[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def resolve_member(root_name: str, file_name: str) -> str:
    """Return the member that a dataset's `file_name` stands for, below `root_name`.

    Args:
        root_name: Folder inside the archive, such as ``train2017``; "" for its top.
        file_name: An untrusted path from an annotation file.

    Raises:
        UnsafeArchiveError: `file_name` is not a safe relative path.
    """
    reason = name_fault(file_name) if isinstance(file_name, str) else "not a text"
    if reason:
        readable = shown(str(file_name))
        raise UnsafeArchiveError(f"file_name {readable!r}: {reason}", "correct the annotation file")
    return normal(f"{root_name}/{file_name}")


def name_fault(name: str) -> str:
    """Return why `name` is unsafe, "" if it is safe. The reasons are few, for counting."""
    if _PLAIN.fullmatch(name):
        return ""
    parts = _parts(name)
    try:
        longest = max((len(part.encode("utf-8")) for part in parts), default=0)
    except UnicodeEncodeError:
        return "name is not valid text"
    faults = {
        "control character in the name": _CONTROL.search(name),
        "absolute path": name.startswith("/"),
        "backslash in the name": "\\" in name,
        "drive letter in the name": any(_DRIVE.match(part) for part in parts),
        "path leaves its folder (..)": ".." in parts,
        "no file name": not parts or name.endswith(("/", "/.")),
        "name too long": longest > _LONGEST_PART,
    }
    return next((reason for reason, holds in faults.items() if holds), "")


def normal(name: str) -> str:
    """Return a safe path without ``.`` and empty parts; case is kept."""
    return "/".join(_parts(name))


def shown(name: str) -> str:
    """Return a name for reports: unprintable characters escaped, and cut to a length."""
    cut = name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}…"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut)


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in {"", "."}]
