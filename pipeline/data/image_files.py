"""An image's bytes by the `file_name` of its record, wherever the source keeps them."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from model.decoding import BadImageError
from pipeline.data.name_forms import Alikes, composed
from storage.archives.archives import Archive, ArchiveLimits, resolve_member
from storage.errors import StorageError
from storage.names import name_fault

_SHOWN = 4  # members listed in the error about an ambiguous name


def image_limits(max_bytes: int) -> ArchiveLimits:
    """Return what an archive of images may hold; LCS-558K is the largest that is known here."""
    return ArchiveLimits(
        members=1_000_000, member_bytes=max_bytes, total_bytes=256 * 2**30, ratio=200.0
    )


@dataclass(frozen=True)
class ImageFiles:
    """Where the images of one origin are on this machine.

    Attributes:
        paths: The folder, the archive, or the archives that hold them together.
        refused: Members that must not be read, with the reason, beyond those found in `paths`.
        faults: Members that could not be fetched, with the detail.
        fault: The drop reason that counts them.
        own: Whether they are in the user's own folder, whose links are followed.
    """

    paths: tuple[Path, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)
    fault: str = "unreadable member"
    own: bool = False


class Members(NamedTuple):
    """Where some images are, for other processes that see the same files.

    Attributes:
        paths: As of `ImageFiles`, absolute.
        own: As of `ImageFiles`.
        names: Theirs, as an Arrow array, which is smaller than Python's strings.
    """

    paths: tuple[Path, ...]
    own: bool
    names: pa.Array


class ImageFinder:
    """Finds an image by its `file_name`, with or without the folders that lead to it.

    A name that is not a member's stands for the one member whose path ends with it, by whole path
    components, or whose path is its end. An equal base name alone is no match. Names are compared
    after Unicode normalisation, which differs between systems; of two members that differ only in
    that, the one spelt as in the record is used.
    """

    def __init__(self, archive: Archive, known: ImageFiles | None = None) -> None:
        self.archive, self.names = archive, set(archive.names())
        known = known or ImageFiles(())
        self._paths, self._own = tuple(path.absolute() for path in known.paths), known.own
        self._refused = {**known.refused, **archive.refused}
        self._faults, self._fault = known.faults, known.fault
        self._ends = {
            kind: _by_base(names)
            for kind, names in (
                ("served", self.names),
                ("refused", self._refused),
                ("faults", self._faults),
            )
        }

    def find(self, file_name: str) -> str | None:
        """Return the member that a `file_name` stands for, or None if there is none.

        Raises:
            UnsafeArchiveError: It is not a safe relative path.
            BadImageError: It matches several members.
        """
        members = self._candidates(file_name)
        if len(members) > 1:
            raise BadImageError(
                "ambiguous file name", f"{file_name}: {', '.join(members[:_SHOWN])}"
            )
        return members[0] if members else None

    def locate(self, file_names: Iterable[str]) -> Members:
        """Return where the images are; of those that are not found, nothing."""
        found = []
        for file_name in file_names:
            with suppress(BadImageError, StorageError):
                found.append(self.find(file_name))
        names = pa.array((name for name in found if name is not None), pa.string())
        return Members(self._paths, self._own, names)

    def find_all(self, file_names: Iterable[str]) -> set[str]:
        """Return every member that the names match; missing and unsafe names are left out."""
        return {
            match for name in file_names if not name_fault(name) for match in self._candidates(name)
        }

    def read(self, file_name: str) -> bytes:
        """Return an image's bytes.

        Raises:
            BadImageError: It is missing, ambiguous, was refused, or could not be fetched.
            StorageError: It cannot be read.
        """
        match = self.find(file_name)
        if match is not None:
            return self.archive.read(match)
        name = resolve_member("", file_name)
        for member in self._alike("faults", name):
            raise BadImageError(self._fault, self._faults[member])
        for member in self._alike("refused", name):
            raise BadImageError("file refused", self._refused[member])
        hint = self._alikes.hint(name)
        raise BadImageError("file missing", f"{name}; {hint}" if hint else name)

    @cached_property
    def _alikes(self) -> Alikes:
        return Alikes(self.names)

    def _candidates(self, file_name: str) -> list[str]:
        for name in (resolve_member("images", file_name), resolve_member("", file_name)):
            if name in self.names:
                return [name]
        return self._alike("served", name)

    def _alike(self, kind: str, name: str) -> list[str]:
        name = composed(name)
        near = {member: composed(member) for member in self._ends[kind].get(_base(name), ())}
        same = [member for member, form in near.items() if form == name]
        ends = (m for m, form in near.items() if _ends_with(form, name) or _ends_with(name, form))
        return same or [*ends]


def _by_base(names: Iterable[str]) -> dict[str, list[str]]:
    by_base: dict[str, list[str]] = {}
    for name in sorted(names):
        by_base.setdefault(composed(_base(name)), []).append(name)
    return by_base


def _ends_with(path: str, end: str) -> bool:
    return f"/{path}".endswith(f"/{end}")


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]
