"""Errors of the storage room: one line that names the thing and the remedy, and no secrets."""

import errno
import re

# A process may be over its quota or its file size limit while the disk has room.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://(\S+)")  # bounded: linear on any text
_CREDENTIALS = re.compile(
    r"://[^/\s]*:[^/\s]*@|[?&][\w-]*(signature|token|secret|password|credential|api_?key|sig)=",
    re.IGNORECASE,
)
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?")
_PARTS = re.compile(r"([^/?#]*)([^?#]*)([?#]?)(.*)")


def redact(text: str) -> str:
    """Return `text` with the secrets of every URL in it masked.

    User names, passwords, values of query fields and fragments become ``***``; the scheme, host,
    path and field names stay, so the text still names the thing. A URL whose host cannot be told
    from an unescaped password is masked whole.
    """
    return _URL.sub(_mask, text)


def holds_credentials(text: str) -> bool:
    """Return whether a text holds a URL with a password, or with a secret among its fields."""
    return _CREDENTIALS.search(text) is not None


def _mask(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    parts = _PARTS.fullmatch(rest)
    assert parts is not None
    authority, path, mark, tail = parts.groups()
    user, at, host = authority.rpartition("@")
    if not _HOST.fullmatch(host) or (not at and ":" in user):
        return f"{scheme}://***"
    # Query fields are all masked: signatures and tokens have too many names to list.
    fields = (f"{name}{sign}***" if sign else "***" for name, sign, _ in _fields(tail))
    return f"{scheme}://{'***@' if at else ''}{host}{path}{mark}{'&'.join(fields) if mark else ''}"


def _fields(query: str) -> list[tuple[str, str, str]]:
    return [field.partition("=") for field in query.split("&")]


class StorageError(Exception):
    """Something stored could not be read, written or fetched.

    The text is one line, "message. remedy", with the secrets of URLs masked. The two parts stay
    separate in ``args``, so that the error survives pickling between processes.

    Args:
        message: What happened and to which thing.
        remedy: What the reader can do about it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(_line(message), _line(remedy))

    def __str__(self) -> str:
        message, remedy = self.args
        return f"{message.rstrip('.')}. {remedy}" if remedy else message


def _line(text: str) -> str:
    return " ".join(redact(text).split())


class ChecksumError(StorageError):
    """The bytes are not those that the checksum was made from."""


class UnsafeArchiveError(StorageError):
    """An archive, or a path read from a dataset, would reach outside its folder or its limits."""


class TransientError(StorageError):
    """A failure that may pass by itself, so the same request is worth another attempt.

    Attributes:
        pause: Seconds that the other side asked to wait, 0 where it named none.
    """

    pause: float = 0.0


class MissingError(StorageError):
    """There is nothing at an address."""


class NoRangeError(StorageError):
    """The server gives whole files only: it does not answer HTTP Range."""


def is_full(error: OSError) -> bool:
    """Return whether a write failed for want of room."""
    return error.errno in _NO_ROOM
