"""The cache of downloads, shared by all recipes: one folder per version of a remote object.

A folder's name is a hash of the address and the server's version of the object (such as its ETag),
or of a known checksum, so versions never mix. For an archive it holds tars with the members that
were needed so far: each is finished and never changes, so that one process can read while another
adds more. Everything here can be removed at any time between two runs.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from storage.errors import redact
from storage.fetch.gathered import read_whole
from storage.filesystem import LocalFiles
from storage.layout import DOWNLOAD

FOLDER = "downloads"  # in the work folder
_MARKS = frozenset({"etag", "md5", "generation", "modified", "created", "checksum", "listing"})

Content = tuple[int, int]  # size and CRC-32


def folder_of(work: Path, url: str, version: Mapping[str, str]) -> Path | None:
    """Return where a version of a remote object is kept; None if the version is unknown.

    Args:
        work: The work folder of this machine.
        url: The address; its secrets are left out, so a freshly signed one means the same.
        version: What the server reports about the object, or its known `checksum`.
    """
    if not _MARKS & version.keys():
        return None
    # With a known checksum the address does not matter.
    place = "" if "checksum" in version else redact(url)
    text = json.dumps([place, sorted(version.items())])
    return work / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]


def kept_tars(folder: Path, wanted: Mapping[str, Content | None]) -> dict[Path, set[str]]:
    """Return the finished tars of a folder that hold wanted files, with the names of those.

    Each tar is read whole with its checksums; one that is damaged is removed.

    Args:
        folder: Folder of the tars.
        wanted: Size and CRC-32 that each file must have, None where unknown.
    """
    names_in: dict[Path, set[str]] = {}
    for path in sorted(folder.glob("*.tar")):
        if not DOWNLOAD.fullmatch(path.stem):
            continue
        kept = read_whole(path)
        names = wanted.keys() & (kept or {}).keys()
        if kept is None or any(wanted[name] not in {None, kept[name]} for name in names):
            path.unlink(missing_ok=True)
        elif names:
            names_in[path] = names
    return names_in


def gather(
    folder: Path,
    wanted: Mapping[str, Content | None],
    here: Callable[[Collection[str]], None],
    fetch: Callable[[Collection[str], Path], Mapping[str, str]],
) -> tuple[list[Path], dict[str, str]]:
    """Return tars that together hold the wanted files, and why files are in none of them.

    Args:
        folder: Folder of the tars.
        wanted: As for `kept_tars`.
        here: Called with the names that need no fetching.
        fetch: Called with the missing names and the tar to write, which resumes an earlier try
            for the same names; returns the faults.
    """
    kept = kept_tars(folder, wanted)
    known = set().union(*kept.values())
    here(known)
    missing = sorted(wanted.keys() - known)
    if not missing:
        return list(kept), {}
    name = hashlib.sha256(json.dumps(missing).encode()).hexdigest()[:16]
    faults = dict(fetch(missing, folder / f"{name}.tar"))
    return [*kept, folder / f"{name}.tar"], faults


def size_of(work: Path) -> int:
    """Return the bytes of all that is kept."""
    paths = (path for folder in _folders(work) for path in folder.rglob("*"))
    return sum(path.stat().st_size for path in paths if path.is_file())


def remove_all(work: Path) -> None:
    """Remove all that is kept; no run may be fetching meanwhile."""
    for folder in _folders(work):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # it also holds other files
        (work / FOLDER).rmdir()


def _folders(work: Path) -> list[Path]:
    """Return the folders of all versions, without other files beside them."""
    if LocalFiles(work).is_linked(FOLDER):
        return []
    paths = (work / FOLDER).glob("*")
    return [path for path in paths if DOWNLOAD.fullmatch(path.name) and not path.is_symlink()]
