"""The mark that identifies a phivision store, so that no other place is ever modified.

It is written before anything else. A store from before there were marks is recognised by its
manifests, whose checksums nothing else has, and then gets the mark.
"""

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from storage.errors import StorageError
from storage.filesystem import LocalFiles
from storage.layout import FORMS, MARK, is_ours
from storage.store.manifest import DamagedManifestError, UnknownManifestError, decode

if TYPE_CHECKING:
    from storage.store.objects import ObjectFiles

LAYOUT = 1
_FORMAT = "phivision store"
_TEXT = json.dumps({"format": _FORMAT, "layout": LAYOUT}).encode()  # the same for all writers
NO_STORE = "no phivision store here"


def require_store(files: "LocalFiles | ObjectFiles") -> None:
    """Return if a place is a store; one without a mark gets it.

    Raises:
        StorageError: It is not a store, so nothing there may be removed, replaced or adopted; or
            its layout is that of a newer version.
    """
    if not _is_store(files):
        raise StorageError(
            f"{NO_STORE}: no artifact is in {files.uri}",
            "check --store and PHIVISION_STORE; `phivision run` makes a store",
        )


def claim(files: "LocalFiles | ObjectFiles") -> None:
    """Mark a place as a store, before the first write to it.

    The place may hold other people's files, but not where a store has its own.

    Raises:
        StorageError: Other files are there, or the place cannot be written.
    """
    if isinstance(files, LocalFiles) and files.root.is_file():
        raise StorageError(f"cannot write {files.uri}: it is a file", "choose another store")
    if _is_store(files):
        return
    names = (f"{folder}/{name}" for folder in FORMS for name in sorted(files.states(folder)))
    other = next((name for name in names if not is_ours(name)), "")
    if other and not _is_marked(files):  # another first writer may have marked it
        raise StorageError(
            f"{NO_STORE}, and none can be made: {files.uri} holds other files, such as {other}",
            "choose an empty folder",
        )
    if not files.create(MARK, _TEXT) and not _is_marked(files):
        raise StorageError(
            f"{files.uri}/{MARK} is not the mark of a phivision store", "choose another store"
        )


def _is_store(files: "LocalFiles | ObjectFiles") -> bool:
    if _is_marked(files):
        return True
    if not _has_manifest(files):
        return False
    with suppress(StorageError):  # it may be read-only
        files.create(MARK, _TEXT)
    return True


def _is_marked(files: "LocalFiles | ObjectFiles") -> bool:
    data = files.read(MARK)
    try:
        content = json.loads(data or b"")
        known, layout = content["format"] == _FORMAT, int(content["layout"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    if known and layout > LAYOUT:
        raise StorageError(
            f"{files.uri} has layout {layout}, this phivision knows {LAYOUT}",
            "use the phivision that wrote this store, or a new store",
        )
    return known


def _has_manifest(files: "LocalFiles | ObjectFiles") -> bool:
    names = [f"manifests/{name}" for name in files.states("manifests")]
    return any(is_ours(name) and _is_manifest(files.read(name), name) for name in names)


def _is_manifest(data: bytes | None, name: str) -> bool:
    try:
        return data is not None and bool(decode(data, name))
    except UnknownManifestError:  # intact, and of another version
        return True
    except DamagedManifestError:
        return False
