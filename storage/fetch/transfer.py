"""One file from any fsspec URL to local disk: whole and verified, or not there at all.

Bytes go to ``NAME.part`` beside the target. A transfer that was stopped, even by kill -9, resumes
at its last byte if the remote object is still the same. Only a complete file with the right
checksum gets the target's name. The lock ``NAME.part.lock`` makes a second process wait and use
the first one's file.
"""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from storage.errors import ChecksumError, StorageError, TransientError, redact
from storage.fetch.partial import PartialFile, hasher, locked, remove_parts
from storage.fetch.remote import open_stream, probe
from storage.fetch.retries import PATIENCE, Patience, Retries
from storage.filesystem import hash_file

__all__ = ["download", "probe", "redact"]

_REMEDY = "check the network and run again: the transfer resumes where it stopped"
_CHECKSUM = re.compile(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}")
# The first bytes of the formats that we fetch; a web page served instead starts differently.
_MAGIC = {
    ".zip": (b"PK",),
    ".gz": (b"\x1f\x8b",),
    ".tgz": (b"\x1f\x8b",),
    ".json": (b"{", b"["),
    ".jsonl": (b"{", b"["),
    ".parquet": (b"PAR1",),
    ".jpg": (b"\xff\xd8",),
    ".png": (b"\x89PNG",),
}


def download(
    url: str,
    target: Path,
    *,
    checksum: str | None,
    size: int | None,
    advance: Callable[[int], None],
    patience: Patience = PATIENCE,
) -> Path:
    """Fetch `url` to `target` and return `target`.

    Nothing is transferred if `target` already has the right checksum, or the right size if no
    checksum is known; with neither, an existing target is accepted, because only complete files
    get that name.

    Args:
        url: Any fsspec URL (``file://``, ``http(s)://``, ``s3://``, ``memory://``) or a local path.
        target: Local file to make; its folder is made too.
        checksum: ``md5:HEX`` or ``sha256:HEX`` of the whole file, or None.
        size: Bytes of the whole file, or None.
        advance: Called with the bytes gained, those found on disk included; negative when bytes
            are discarded. The sum is the file's size.
        patience: How often to try, and how long to wait for bytes.

    Raises:
        ChecksumError: The content is not the expected one. The bytes are removed.
        TransientError: Unreachable after all attempts; the bytes so far are kept.
        StorageError: Missing, forbidden, of another size, a web page in place of the file, or no
            room on disk.
    """
    if checksum is not None and not _CHECKSUM.fullmatch(checksum):
        raise StorageError(f"checksum {checksum!r} is malformed", "write md5:HEX or sha256:HEX")
    with locked(target):
        if _is_there(target, checksum, size):
            remove_parts(target)
            advance(target.stat().st_size)
            return target
        with PartialFile(url, target, checksum, advance) as part:
            _fetch(part, size, patience)
            part.publish()
        return target


def _is_there(target: Path, checksum: str | None, size: int | None) -> bool:
    if target.is_dir():
        raise StorageError(f"{target} is a folder, not a file to write", "name another target")
    if not target.is_file() or (size is not None and target.stat().st_size != size):
        return False
    algorithm, _, wanted = (checksum or "").partition(":")
    return checksum is None or hash_file(target, hasher(algorithm)) == wanted


def _fetch(part: PartialFile, size: int | None, patience: Patience) -> None:
    """Fill and verify `part`, over as many connections as needed."""
    retries, furthest = Retries(patience, _REMEDY), part.offset
    while True:
        try:
            if not part.is_complete(size):
                _fill(part, size, patience.timeout)
            return part.verify()
        except ChecksumError as error:
            # Bytes joined from two connections may be of two objects: fetch again, in one go.
            joined, failure = part.joined, error
            part.restart()
            if not joined:
                raise
        except TransientError as error:
            failure = error
        if part.offset > furthest:
            furthest = part.offset
            retries.progress()
        total = part.version.get("size", "an unknown number of")
        retries.failed(failure, f"; {part.offset} of {total} bytes are on disk")


def _fill(part: PartialFile, size: int | None, timeout: float) -> None:
    """Append one connection's bytes to the part."""
    # Without a known version, bytes of two connections may belong to different objects.
    offset = part.offset if part.version else 0
    stream = open_stream(part.url, offset=offset, version=part.version, timeout=timeout)
    with contextlib.closing(stream):
        chunk = stream.read()
        if stream.start == 0:
            part.restart()
            _refuse_page(part, stream.kind, chunk)
        total = stream.total if size is None else size
        if total is not None and stream.total not in {total, None}:
            part.restart()
            raise _wrong_size(part, total, str(stream.total))
        part.describe(stream.version, total)
        while chunk:
            part.append(chunk)
            if total is not None and part.offset > total:
                part.restart()
                raise _wrong_size(part, total, "more")
            chunk = stream.read()
    if total is not None and part.offset < total:
        raise TransientError(f"{part.name} ended after {part.offset} bytes, expected {total}")


def _wrong_size(part: PartialFile, expected: int, received: str) -> StorageError:
    return StorageError(
        f"{part.name} has the wrong size: expected {expected} bytes, found {received}",
        "check the address; a new version of the source needs its own size and checksum",
    )


def _refuse_page(part: PartialFile, kind: str, head: bytes) -> None:
    """Refuse a web page that was sent with status 200 instead of the file."""
    suffix = part.target.suffix.lower()
    if suffix in {".html", ".htm"}:
        return
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    tagged = start[:15].lower().startswith((b"<!doctype html", b"<html"))
    # Some servers call every file text/html, so the first bytes decide where they can.
    if tagged or (kind.startswith("text/html") and not start.startswith(_MAGIC.get(suffix, ()))):
        raise StorageError(
            f"{part.name} gave a web page (HTML, status 200) in place of {part.target.name}",
            "open the address in a browser: a login, a proxy or a moved file is likely",
        )
