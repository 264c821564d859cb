"""One way to read the files of a folder, a zip, a tar or a tar.gz that came from elsewhere.

Nothing is ever extracted: members are read into memory by name, so no name of an archive reaches
the disk. Which members are safe is decided in `storage.archives.members` and `storage.names`; this
module handles the faults of each format.
"""

import gzip
import io
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, cast

from storage.archives.members import Archive, ArchiveLimits, Member, Pieces
from storage.errors import StorageError, is_full
from storage.filesystem import walk_files
from storage.names import resolve_member

__all__ = ["Archive", "ArchiveLimits", "open_archive", "resolve_member"]

_CHUNK = 1 << 20
_BLOCK = 512  # bytes of a tar header, and what files are rounded up to
_ENCRYPTED = 0x1
_SAYS_UTF8 = 0x800
# Python's bz2 and lzma unpack whole blocks, so a bomb in them could not be stopped in time.
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def open_archive(path: Path, *, limits: ArchiveLimits | None = None, own: bool = False) -> Archive:
    """Open a folder, ``.zip``, ``.tar`` or ``.tar.gz``, recognised by content, not by name.

    A tar.gz is unpacked once into a nameless temporary file beside it (or in the system's temporary
    folder), because gzip has no random access; that file is gone when the archive is closed or the
    process ends.

    Args:
        path: The archive.
        limits: Its limits; None for the defaults.
        own: Whether it is the user's own folder, whose links are followed wherever they lead.
            Links in an archive are never followed.

    Raises:
        UnsafeArchiveError: The archive as a whole is over a limit.
        StorageError: It is missing, damaged, or of another kind.
    """
    try:
        kind = _kind(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be opened: {error.strerror or error}", "check the path"
        ) from error
    if kind is _Folder and own:
        kind = _OwnFolder
    return kind(path, limits or ArchiveLimits())


def _kind(path: Path) -> type[Archive]:
    if path.is_dir():
        return _Folder
    with path.open("rb") as handle:
        head = handle.read(_BLOCK)
    if head.startswith(b"\x1f\x8b"):
        return _PackedTar
    if head[257:262] == b"ustar":
        return _Tar
    # After tar, because a tar whose last member is a zip also ends like a zip.
    if head.startswith(b"PK") or zipfile.is_zipfile(path):
        return _Zip
    if tarfile.is_tarfile(path):
        return _Tar
    raise StorageError(
        f"{path} is not a zip, tar or tar.gz: it starts with {head[:16]!r}", "download it again"
    )


class _Folder(Archive):
    """The files below a folder; links may point to files inside it only."""

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        super().__init__(path, limits)
        self._root = path.resolve()
        with self._naming():
            self._admit(self._scan())

    def _scan(self) -> Iterator[Member | None]:
        for folder, folders, files in os.walk(self._root, onerror=_raise):
            for name in folders:
                place = Path(folder, name)
                # os.walk does not follow it; the refusal says why its files are missing.
                yield self._refuse(place, "symlink to a folder") if place.is_symlink() else None
            for name in files:
                yield self._file(Path(folder, name))

    def _file(self, place: Path) -> Member:
        # Unlike Path.resolve, realpath does not raise on symlink loops.
        real = Path(os.path.realpath(place)) if place.is_symlink() else place
        if not self._may_lead_to(real):
            return self._refuse(place, "symlink leaves the folder")
        if not real.exists():
            return self._refuse(place, "symlink to nothing")
        state = real.stat()
        if not stat.S_ISREG(state.st_mode):
            return self._refuse(place, "not a regular file")
        return Member(self._name(place), state.st_size, state.st_size, real)

    def _may_lead_to(self, real: Path) -> bool:
        return real.is_relative_to(self._root)

    def _name(self, place: Path) -> str:
        return place.relative_to(self._root).as_posix()

    def _refuse(self, place: Path, reason: str) -> Member:
        return Member(self._name(place), 0, 0, None, reason)

    def _load(self, member: Member) -> bytes:
        with self._stream(member) as handle:
            return handle.read(member.size + 1)

    def _stream(self, member: Member) -> IO[bytes]:
        return member.key.open("rb")

    def close(self) -> None:
        """Nothing stays open between reads."""


class _OwnFolder(_Folder):
    """The files below the user's own folder; links may point anywhere, to folders too."""

    def _scan(self) -> Iterator[Member | None]:
        for place in walk_files(self._root):
            yield self._file(place)

    def _may_lead_to(self, real: Path) -> bool:
        del real
        return True


def _raise(error: OSError) -> None:
    raise error


class _Zip(Archive):
    """A zip; every read checks the member's CRC-32."""

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        super().__init__(path, limits)
        with self._naming():
            self._zip = zipfile.ZipFile(path)
        try:
            self._admit(map(zip_member, self._zip.infolist()), packed=path.stat().st_size)
        except BaseException:
            self.close()
            raise

    def _load(self, member: Member) -> bytes:
        with self._stream(member) as handle:
            return handle.read(member.size + 1)

    def _stream(self, member: Member) -> IO[bytes]:
        refuse_encrypted(self.title, member)
        return self._zip.open(member.key)

    def close(self) -> None:
        """Close the file."""
        self._zip.close()


def refuse_encrypted(title: str, member: Member) -> None:
    """Raise StorageError if a zip's member needs a password."""
    if member.key.flag_bits & _ENCRYPTED:
        raise StorageError(
            f"{title} member {member.name} is encrypted",
            "unpack it with its password and pack it without one",
        )


def zip_member(info: zipfile.ZipInfo) -> Member | None:
    """Return a zip's entry as a member, with the reason to refuse it; None for a folder."""
    # zipfile cuts a name at its first NUL; the whole name is needed, so that it is refused.
    name = info.orig_filename if "\0" in info.orig_filename else _in_utf8(info)
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was not packed on Unix
    if stat.S_ISLNK(kind):
        fault = "symlink"
    elif name.endswith("/"):
        return None
    elif kind not in {0, stat.S_IFREG}:
        fault = "not a regular file"
    else:
        fault = "" if info.compress_type in _METHODS else "packed by a method other than deflate"
    return Member(name, info.file_size, info.compress_size, info, fault)


def _in_utf8(info: zipfile.ZipInfo) -> str:
    """Return an entry's name, decoded as UTF-8 where valid; macOS writes it without the flag."""
    if info.flag_bits & _SAYS_UTF8 or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


class _Tar(Archive):
    """A tar, read at its members' offsets; a damaged header is an error, never the end."""

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        super().__init__(path, limits)
        with self._naming():
            self._handle = self._open()
        try:
            with self._naming():
                self._admit(self._scan())
        except BaseException:
            self.close()
            raise

    def _open(self) -> IO[bytes]:
        return self.path.open("rb")

    def _scan(self) -> Iterator[Member | None]:
        headers = _Headers(self._handle, self._too_large)
        with tarfile.open(fileobj=cast("IO[bytes]", headers), mode="r:") as tar:
            last = -1
            while (info := tar.next()) is not None:
                if info.offset <= last:
                    raise tarfile.ReadError("a header points backwards")
                last = info.offset
                yield _tar_member(info)
            end = tar.offset
        # tarfile takes a broken header, and a file that stops between members, for the end.
        self._handle.seek(end)
        if self._handle.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"no header and no end mark at byte {end}")

    def _load(self, member: Member) -> bytes:
        self._handle.seek(member.key)
        return self._handle.read(member.size)

    def _stream(self, member: Member) -> IO[bytes]:
        def pieces() -> Generator[bytes, None, None]:
            left = member.size
            self._handle.seek(member.key)
            while piece := self._handle.read(min(left, _CHUNK)):
                left -= len(piece)
                yield piece

        return io.BufferedReader(Pieces(pieces()))

    def close(self) -> None:
        """Close the file; an unpacked copy vanishes with it."""
        self._handle.close()


class _PackedTar(_Tar):
    """A tar.gz, unpacked into a temporary file under the archive's limits."""

    def _open(self) -> IO[bytes]:
        overhead = 2 * _BLOCK * self.limits.members
        packed, total = self.path.stat().st_size, 0
        spool = _temporary(self.path.parent)
        try:
            with gzip.open(self.path) as source:
                while chunk := source.read(_CHUNK):
                    total += len(chunk)
                    self._check_total(total, packed, overhead)
                    self._keep(spool, chunk)
            spool.seek(0)
        except BaseException:
            spool.close()
            raise
        return spool

    def _keep(self, spool: IO[bytes], chunk: bytes) -> None:
        try:
            spool.write(chunk)
            spool.flush()
        except OSError as error:
            folder = self.path.parent
            if not is_full(error):
                raise StorageError(
                    f"cannot unpack {self.path.name} in {folder}: {error.strerror or error}",
                    "unpack it elsewhere and give the folder",
                ) from error
            raise StorageError(
                f"not enough disk space in {folder} to unpack {self.path.name}, of "
                f"{self.path.stat().st_size} bytes and more when unpacked; "
                f"{shutil.disk_usage(folder).free} are free",
                "free space, or unpack it elsewhere and give the folder",
            ) from error


def _temporary(folder: Path) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError:  # a read-only folder
        return tempfile.TemporaryFile()


def _tar_member(info: tarfile.TarInfo) -> Member | None:
    if info.isdir():
        return None
    faults = {
        "symlink": info.issym(),
        "hard link": info.islnk(),
        "device or pipe": info.isdev(),
        "sparse file": info.issparse(),
        "not a regular file": not info.isreg(),
    }
    fault = next((reason for reason, holds in faults.items() if holds), "")
    return Member(info.name, info.size, info.size, info.offset_data, fault)


class _Headers:
    """Limits reads of a tar's headers; tarfile reads extended headers whole into memory."""

    def __init__(self, handle: IO[bytes], refuse: Callable[[str], StorageError]) -> None:
        self._handle, self._refuse = handle, refuse
        self.seek, self.tell = handle.seek, handle.tell

    def read(self, size: int) -> bytes:
        """Return `size` bytes, at most `_CHUNK`."""
        if not 0 <= size <= _CHUNK:
            raise self._refuse(f"a tar header of {size} bytes")
        return self._handle.read(size)
