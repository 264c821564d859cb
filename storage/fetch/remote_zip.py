"""A zip behind HTTP, of which only the directory and the wanted members are downloaded.

The standard library's zipfile reads the directory (zip64 too) through a window of byte ranges. A
member's bytes are cut out of the ranges as they arrive and checked against the directory's CRC-32.
"""

import io
import struct
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, cast

from storage.archives.archives import refuse_encrypted, zip_member
from storage.archives.members import Archive, ArchiveLimits, Member
from storage.errors import NoRangeError, StorageError, TransientError, redact
from storage.fetch.remote import open_range
from storage.fetch.retries import Patience, Retries
from storage.fetch.spans import Span
from storage.names import normal

_TAIL = 8 << 10  # bytes first read at the end; a small archive's directory is within
_LARGEST_DIRECTORY = 256 << 20  # bytes; train2017.zip has about 12 MB
_LOCAL = struct.Struct("<4s5H3I2H")  # header in front of a member's bytes
_LONGEST_LOCAL = _LOCAL.size + 2 * 0xFFFF


class RemoteZip(Archive):
    """The members of a zip behind HTTP; safe for use by several threads after it is made.

    Attributes:
        url: Where it is.
        size_bytes: Bytes of the whole zip.
        moved: Bytes downloaded to read its directory.
        version: ETag, date and size of the file, as far as the server reports them.

    Args:
        url: An http or https address.
        limits: What the archive may hold.
        patience: How often to try, and how long to wait for bytes.

    Raises:
        NoRangeError: The server gives whole files only.
        StorageError: Missing, unreachable, not a zip, or over a limit.
    """

    def __init__(self, url: str, limits: ArchiveLimits, patience: Patience) -> None:
        super().__init__(Path(url.rpartition("/")[2]), limits)
        self.url, self.title, self._patience = url, redact(url), patience
        window = _Window(url, patience)
        self.size_bytes, self.version = window.size, window.version
        with self._naming(), zipfile.ZipFile(cast("IO[bytes]", window)) as packed:
            entries, start = packed.infolist(), packed.start_dir
        self.moved = window.moved
        self._edges = sorted({entry.header_offset for entry in entries} | {start})
        self._admit(map(zip_member, entries), packed=self.size_bytes)

    def packed(self, name: str) -> int:
        """Return the packed bytes of a member.

        Raises:
            StorageError: There is no such member, or it was refused.
        """
        return self._find(name).packed

    def crc(self, name: str) -> int:
        """Return the CRC-32 of a member's content, as declared."""
        return self._find(name).key.CRC

    def span(self, name: str) -> Span:
        """Return the byte range of a member, its local header included."""
        entry = self._find(name).key
        # Only the local header itself has its length, so the span ends at the next member.
        after = bisect_right(self._edges, entry.header_offset)
        end = entry.header_offset + _LONGEST_LOCAL + entry.compress_size
        if after < len(self._edges):
            end = min(end, self._edges[after])
        return Span(name, entry.header_offset, min(end, self.size_bytes))

    def stream(self, spans: Sequence[Span]) -> Iterator[tuple[str, bytes]]:
        """Yield the raw bytes of each span out of one request, as they arrive.

        Raises:
            TransientError: The connection broke; what was yielded is complete.
            StorageError: The object changed, or is gone.
        """
        at, held = spans[0].first, bytearray()
        source = open_range(
            self.url,
            at,
            spans[-1].end - 1,
            version=self.version,
            timeout=self._patience.timeout,
        )
        with closing(source):
            for span in spans:
                while at + len(held) < span.end:
                    piece = source.read()
                    if not piece:
                        raise TransientError(f"{self.title} ended before byte {span.end}")
                    held += piece
                yield span.name, bytes(held[span.first - at : span.end - at])
                del held[: span.end - at]
                at = span.end

    def unpack(self, name: str, raw: bytes) -> bytes:
        """Return a member's content out of the bytes of its span.

        Raises:
            StorageError: They are not what the directory says, or are encrypted.
        """
        member = self._find(name)
        refuse_encrypted(self.title, member)
        with self._naming(name):
            return _unpack(member, raw)

    def close(self) -> None:
        """Nothing stays open between reads."""

    def _load(self, member: Member) -> bytes:
        [(name, raw)] = self.stream([self.span(normal(member.name))])
        return self.unpack(name, raw)


def _unpack(member: Member, raw: bytes) -> bytes:
    mark, *_, name_length, extra_length = _LOCAL.unpack_from(raw)
    if mark != b"PK\x03\x04":
        raise zipfile.BadZipFile("no member begins where the directory says")
    start = _LOCAL.size + name_length + extra_length
    data = raw[start : start + member.packed]
    if len(data) != member.packed:
        raise zipfile.BadZipFile(f"expected {member.packed} packed bytes, found {len(data)}")
    if member.key.compress_type == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
    if len(data) != member.size or zlib.crc32(data) != member.key.CRC:
        raise zipfile.BadZipFile("the CRC-32 differs from the directory's")
    return data


class _Window:
    """The parts of a remote file that zipfile reads: its end, then each requested range."""

    def __init__(self, url: str, patience: Patience) -> None:
        self.url, self.patience, self.moved = url, patience, 0
        self.version: dict[str, str] = {}
        self._position, self._start, self._held = 0, 0, b""
        self._fill(0, 1)
        if "size" not in self.version:
            raise NoRangeError(f"{redact(url)} does not report its size", "fetch it whole")
        self.size = int(self.version["size"])
        self._fill(max(0, self.size - _TAIL), self.size)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("a position before the start")  # as files do, and zipfile expects
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = self._position
        end = self.size if size < 0 else min(start + size, self.size)
        if start >= end:
            return b""
        if start < self._start or end > self._start + len(self._held):
            if end - start > _LARGEST_DIRECTORY:
                raise StorageError(
                    f"{redact(self.url)} has a directory of {end - start} bytes",
                    "that is too large for a zip of images: check the address",
                )
            self._fill(start, end)
        self._position = end
        return self._held[start - self._start : end - self._start]

    def _fill(self, start: int, end: int) -> None:
        """Hold the bytes from `start` up to `end`."""
        retries = Retries(self.patience, "check the network and run again")
        while True:
            try:
                self._start, self._held = start, self._fetch(start, end)
            except TransientError as error:
                retries.failed(error)
            else:
                return

    def _fetch(self, start: int, end: int) -> bytes:
        source = open_range(
            self.url, start, end - 1, version=self.version, timeout=self.patience.timeout
        )
        held = bytearray()
        with closing(source):
            while len(held) < end - start and (piece := source.read()):
                held += piece
        self.moved += len(held)
        if len(held) < end - start:
            raise TransientError(f"{redact(self.url)} ended before byte {end}")
        self.version = self.version or source.version
        return bytes(held[: end - start])
