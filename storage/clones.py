"""A second name or copy of a large local file, without writing its bytes twice where that is safe.

A reflink shares blocks until either side is written, so it is always safe. A hard link is one file
with two names: a write to one changes both. So only a file that must not change again is linked (a
blob of a cache), and it is made read-only first, as git-annex and DVC do.
"""

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

from storage.filesystem import copy_file, local_error, make_folder

Way = Literal["reflink", "link", "copy"]

_FICLONE = 0x40049409  # Linux: let another file share these blocks, copied when written
_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def clone_file(source: Path, target: Path, *, may_link: bool) -> Way:
    """Give `target` the content of `source` in the cheapest safe way, and return which that was.

    Args:
        source: The file; a symbolic link is followed.
        target: A path in our own folders where no file exists yet; its folder is created.
        may_link: Whether the source may become read-only and share its content for good. Never
            for a file that a user may still edit.

    Raises:
        StorageError: The source cannot be read, or there is no room.
    """
    source = source.resolve()
    try:
        make_folder(target.parent)
        if _reflink(source, target):
            return "reflink"
        if may_link and _link(source, target):
            return "link"
        copy_file(source, target)
    except OSError as error:
        raise local_error("copy", source, error) from error
    return "copy"


def clone_folder(source: Path, target: Path) -> None:
    """Copy all files of a folder, sharing their blocks where the disk can.

    Never by hard links: a flipped bit in one of two artifacts must not damage the other.

    Raises:
        StorageError: A file cannot be read, or there is no room.
    """
    for path in sorted(source.rglob("*")):
        if path.is_file():
            clone_file(path, target / path.relative_to(source), may_link=False)


def _reflink(source: Path, target: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    with source.open("rb") as reading, target.open("xb") as writing:
        try:
            fcntl.ioctl(writing, _FICLONE, reading.fileno())
        except OSError:  # another disk, or one without reflinks
            target.unlink()
            return False
    return True


def _link(source: Path, target: Path) -> bool:
    """Make a hard link to a file that this user owns, after making it read-only."""
    state = source.stat()
    if state.st_dev != target.parent.stat().st_dev or state.st_uid != os.geteuid():
        return False  # another disk; or its owner may make it writable again
    mode = stat.S_IMODE(state.st_mode)
    try:
        if mode & _WRITABLE:
            source.chmod(mode & ~_WRITABLE)
        os.link(source, target)
    except OSError:  # a disk without links, or a mount that keeps its modes
        with suppress(OSError):
            source.chmod(mode)
        return False
    return True
