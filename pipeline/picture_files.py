"""A picture's bytes by the `file_name` of its record, wherever the source has put them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model.decoding import BadImageError
from storage.archives import Archive, ArchiveLimits, resolve_member
from storage.errors import UnsafeArchiveError


def picture_limits(max_bytes: int) -> ArchiveLimits:
    """Return what an archive of pictures may hold; LCS-558K is the largest that is known here."""
    return ArchiveLimits(
        members=1_000_000, member_bytes=max_bytes, total_bytes=256 * 2**30, ratio=200.0
    )


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of one origin are on this machine.

    Attributes:
        path: Folder or archive.
        refused: Members that must not be read, with the reason, beyond those found in `path`.
        faults: Members that the source could not give, with the detail.
        fault: The reason that counts them.
    """

    path: Path
    refused: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)
    fault: str = "unreadable member"


class PictureFinder:
    """Finds a picture by its `file_name`, with or without the archive's leading folder."""

    def __init__(self, archive: Archive, known: Pictures | None = None) -> None:
        self.archive, self.names = archive, set(archive.names())
        known = known or Pictures(archive.path)
        self.by_base = {_base(name): name for name in archive.names()}
        refused = {**known.refused, **archive.refused}
        self.refused = {_base(name): why for name, why in refused.items()}
        self.faults = {_base(name): why for name, why in known.faults.items()}
        self.fault = known.fault

    def find(self, file_name: str) -> str | None:
        """Return the member that a `file_name` means, or None if there is none.

        Raises:
            UnsafeArchiveError: It is no safe relative path.
        """
        for name in (resolve_member("images", file_name), resolve_member("", file_name)):
            if name in self.names:
                return name
        return self.by_base.get(_base(name))

    def find_all(self, file_names: list[str]) -> set[str]:
        """Return the members that names mean; what is missing or unsafe is left out."""
        return {found for name in file_names if (found := self._find_safe(name)) is not None}

    def read(self, file_name: str) -> bytes:
        """Return a picture's bytes.

        Raises:
            BadImageError: It is missing, was refused, or could not be fetched.
            StorageError: It cannot be read.
        """
        found = self.find(file_name)
        if found is not None:
            return self.archive.read(found)
        name = resolve_member("images", file_name)
        if why := self.faults.get(_base(name)):
            raise BadImageError(self.fault, why)
        why = self.refused.get(_base(name))
        raise BadImageError("file refused" if why else "file missing", why or name)

    def _find_safe(self, file_name: str) -> str | None:
        try:
            return self.find(file_name)
        except UnsafeArchiveError:
            return None


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]
