"""The members of an archive: which are served, which are refused, and the limits of both.

Invariant: a name in `Archive.names()` is a relative path that stays inside the archive, belongs to
exactly one regular file, and keeps the limits. Everything else is in `Archive.refused` with its
reason and cannot be read; it never stops the good members.
"""

import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from storage.errors import StorageError, UnsafeArchiveError
from storage.names import name_fault, normal, shown

_MIB = 1 << 20


@dataclass(frozen=True)
class ArchiveLimits:
    """How much an archive may hold; the defaults fit COCO's images.

    Attributes:
        members: Entries of any kind. train2017.zip has 118,288.
        member_bytes: Unpacked bytes of one member. Give 2 GiB for an archive of annotations.
        total_bytes: Unpacked bytes of all members.
        ratio: Unpacked by packed bytes, of each member over 1 MiB and of the whole. JSON reaches
            about 10, and a bomb 1,000.
    """

    members: int = 300_000
    member_bytes: int = 64 * _MIB
    total_bytes: int = 64 << 30
    ratio: float = 200.0

    def is_bomb(self, size: int, packed: int) -> bool:
        """Return whether `packed` bytes that unpack to `size` look like a zip bomb."""
        return size > _MIB and size > self.ratio * max(packed, 1)


@dataclass(frozen=True, slots=True)
class Member:
    """One file, link or device as an archive declares it.

    Attributes:
        name: The name as the archive has it.
        size: Unpacked bytes.
        packed: Packed bytes; `size` where nothing is packed.
        key: What the archive needs to read it.
        fault: Why it must not be read, "" if it may.
    """

    name: str
    size: int
    packed: int
    key: Any
    fault: str = ""


class Pieces(io.RawIOBase):
    """A stream of the bytes that a generator yields."""

    def __init__(self, pieces: Generator[bytes, None, None]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Copy the next bytes into a buffer, and return how many; 0 at the end."""
        piece = self._rest or next(self._pieces, b"")
        count = min(len(buffer), len(piece))
        buffer[:count], self._rest = piece[:count], piece[count:]
        return count

    def close(self) -> None:
        """Close the generator."""
        self._pieces.close()
        super().close()


class Archive(ABC):
    """The regular files of one archive, in any order.

    Not safe for use by several threads, because members are read through one file position: open
    the archive once in each thread.

    Attributes:
        path: The archive.
        title: Its name for messages.
        limits: What it may hold.
        refused: Name, with odd characters escaped, and reason of each member that is not served.
    """

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        self.path, self.title, self.limits = path, str(path), limits
        self.refused: dict[str, str] = {}
        self._members: dict[str, Member] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def names(self) -> list[str]:
        """Return the names of all files that can be read, normalised and sorted."""
        return sorted(self._members)

    def size(self, name: str) -> int:
        """Return the unpacked bytes of a member, as declared.

        Raises:
            StorageError: There is no such member, or it was refused.
        """
        return self._find(name).size

    def read(self, name: str) -> bytes:
        """Return a member's content, checked as far as the format has checksums.

        Raises:
            StorageError: No such member, damaged, cut short, longer than declared, or encrypted.
        """
        member = self._find(name)
        with self._naming(name):
            data = self._load(member)
        self._check_size(name, member.size, len(data))
        return data

    def open(self, name: str) -> io.BufferedReader:
        """Return a member's content as a stream; read no other member until it is closed.

        Raises:
            StorageError: As `read`; what is wrong with the content, once reading gets there.
        """
        return io.BufferedReader(Pieces(self._pieces(name, self._find(name))), _MIB)

    def _pieces(self, name: str, member: Member) -> Generator[bytes, None, None]:
        count = 0
        with self._naming(name), self._stream(member) as stream:
            while count <= member.size and (piece := stream.read(min(_MIB, member.size + 1))):
                count += len(piece)
                yield piece
        self._check_size(name, member.size, count)

    def _check_size(self, name: str, expected: int, count: int) -> None:
        if count != expected:
            more = "more" if count > expected else str(count)
            raise self._damaged(name, f"expected {expected} bytes, found {more}")

    @abstractmethod
    def close(self) -> None:
        """Close the archive's files."""

    @abstractmethod
    def _load(self, member: Member) -> bytes:
        """Return the content, at most `member.size` + 1 bytes of it."""

    def _stream(self, member: Member) -> IO[bytes]:
        """Return the content as a stream; it may be longer than `member.size`."""
        return io.BytesIO(self._load(member))

    def _find(self, name: str) -> Member:
        if name not in self._members:
            reason = self.refused.get(shown(name), "there is no such file")
            raise StorageError(f"{self.title} member {shown(name)}: {reason}", "check the name")
        return self._members[name]

    @contextmanager
    def _naming(self, name: str = "") -> Generator[None, None, None]:
        """Name archive and member in errors; the libraries raise ten kinds on damaged input."""
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            raise self._damaged(name, f"{type(error).__name__}: {error}") from error

    def _damaged(self, name: str, reason: str) -> StorageError:
        where = f"{self.title} member {shown(name)}" if name else self.title
        message = f"{where} is damaged or cut short ({shown(reason)})"
        return StorageError(message, "download or pack the archive again")

    def _admit(self, members: Iterable[Member | None], packed: int | None = None) -> None:
        """Sort members into those served and those refused; None stands for a folder.

        Raises:
            UnsafeArchiveError: The archive as a whole is over a limit.
        """
        kept: list[tuple[str, Member]] = []
        total = 0
        for count, member in enumerate(members, start=1):
            if count > self.limits.members:
                raise self._too_large(f"more than {self.limits.members} members")
            if member is None:
                continue
            if reason := member.fault or name_fault(member.name) or self._excess(member):
                self.refused[shown(member.name)] = reason
                continue
            kept.append((normal(member.name), member))
            total += member.size
            self._check_total(total, packed)
        seen = Counter(name for name, _ in kept)
        for name, member in kept:
            if seen[name] > 1:
                # Readers differ in which of them they return.
                self.refused[shown(name)] = "several members have this name"
            else:
                self._members[name] = member

    def _excess(self, member: Member) -> str:
        if not 0 <= member.size <= self.limits.member_bytes:
            return f"larger than {self.limits.member_bytes} bytes"
        if self.limits.is_bomb(member.size, member.packed):
            return f"compression ratio over {self.limits.ratio:g}"
        return ""

    def _check_total(self, total: int, packed: int | None, overhead: int = 0) -> None:
        if total > self.limits.total_bytes + overhead:
            raise self._too_large(f"more than {self.limits.total_bytes} bytes unpacked")
        if packed is not None and self.limits.is_bomb(total, packed):
            raise self._too_large(f"a compression ratio over {self.limits.ratio:g}")

    def _too_large(self, reason: str) -> UnsafeArchiveError:
        return UnsafeArchiveError(
            f"{self.title} has {reason}",
            "if its source can be trusted, raise that limit; otherwise do not use it",
        )
