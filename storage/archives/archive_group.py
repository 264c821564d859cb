"""Several archives read as one."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from storage.archives.archives import open_archive
from storage.archives.members import Archive, ArchiveLimits, Member


def open_archives(paths: Sequence[Path], limits: ArchiveLimits, *, own: bool = False) -> Archive:
    """Return archives as one; a single one is itself, without a second index of its members.

    Raises:
        UnsafeArchiveError: As `ArchiveGroup`.
        StorageError: As `ArchiveGroup`.
    """
    if len(paths) == 1:
        return open_archive(paths[0], limits=limits, own=own)
    return ArchiveGroup(paths, limits, own=own)


class ArchiveGroup(Archive):
    """The members of several archives; a name belongs to the first archive that has it.

    Raises:
        UnsafeArchiveError: One is over a limit.
        StorageError: One is missing, damaged, or of another kind.
    """

    def __init__(self, paths: Sequence[Path], limits: ArchiveLimits, *, own: bool = False) -> None:
        super().__init__(paths[0] if paths else Path(), limits)
        with ExitStack() as stack:
            for path in paths:
                archive = stack.enter_context(open_archive(path, limits=limits, own=own))
                self.refused |= archive.refused
                for name in archive.names():
                    size = archive.size(name)
                    self._members.setdefault(name, Member(name, size, size, archive))
            self._open = stack.pop_all()

    def _load(self, member: Member) -> bytes:
        archive: Archive = member.key
        return archive.read(member.name)

    def _stream(self, member: Member) -> IO[bytes]:
        archive: Archive = member.key
        return archive.open(member.name)

    def close(self) -> None:
        """Close all of them."""
        self._open.close()
