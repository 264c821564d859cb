"""The base of expected errors, and the errors of storage, whose texts hold no secrets."""

import errno
import re

# A process may be over its quota or its file size limit while the disk has room.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://(\S+)")  # bounded: linear on any text
_SECRET = re.compile(
    r"signature|token|secret|passw|pwd|credential|key|sig$|auth|jwt", re.IGNORECASE
)
# Fields of a query that say which version of a file is meant, or how it is sent.
_HARMLESS = frozenset(
    {"alt", "dl", "download", "export", "format", "generation", "raw", "ref", "revision"}
    | {"v", "version", "versionid"}
)
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?")
_PARTS = re.compile(r"([^/?#]*)([^?#]*)([?#]?)(.*)")


def redact(text: str) -> str:
    """Return `text` with the secrets of every URL in it masked.

    User names, passwords, values of query fields and fragments become ``***``; the scheme, host,
    path and field names stay, so the text still names the object. A URL whose host cannot be
    distinguished from an unescaped password is masked whole.
    """
    return _URL.sub(_mask, text)


def holds_credentials(text: str) -> bool:
    """Return whether a text holds a URL with a password, an HTTP user, or a secret in a field.

    If the text is nothing but a URL, every field not known to be harmless counts as a secret:
    there are too many names for secrets to list.
    """
    return any(_tells(match, alone=match[0] == text.strip()) for match in _URL.finditer(text))


def _tells(match: re.Match[str], *, alone: bool) -> bool:
    scheme, rest = match.groups()
    authority, _, _, tail = _split(rest)
    user, at, host = authority.rpartition("@")
    if at and (":" in user or scheme.lower() in {"http", "https"}):
        return True
    if "@" in rest and not _HOST.fullmatch(host):  # a password with a slash in it
        return True
    fields = [(name, sign) for name, sign, _ in _fields(tail) if name]
    if alone:
        return any(name.lower() not in _HARMLESS for name, _ in fields)
    return any(sign and _SECRET.search(name) for name, sign in fields)


def _mask(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    authority, path, mark, tail = _split(rest)
    user, at, host = authority.rpartition("@")
    if not _HOST.fullmatch(host) or (not at and ":" in user):
        return f"{scheme}://***"
    # Query fields are all masked: signatures and tokens have too many names to list.
    fields = (f"{name}{sign}***" if sign else "***" for name, sign, _ in _fields(tail))
    return f"{scheme}://{'***@' if at else ''}{host}{path}{mark}{'&'.join(fields) if mark else ''}"


def _split(rest: str) -> tuple[str, ...]:
    """Return authority, path, mark and tail of what follows a URL's scheme."""
    parts = _PARTS.fullmatch(rest)
    assert parts is not None
    return parts.groups()


def _fields(query: str) -> list[tuple[str, str, str]]:
    return [field.partition("=") for field in query.split("&")]


class ExpectedError(Exception):
    """Something went wrong that its user can mend; any other error is a defect of the code.

    The text is what is wrong and, on a line of its own after an arrow, what to do about it. The two
    stay separate in `args` too, so that the error survives pickling between processes.

    Args:
        message: What is wrong, naming the file, record or field.
        remedy: What to do about it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message, self.remedy = message, remedy

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.remedy}" if self.remedy else self.message


class StorageError(ExpectedError):
    """Something stored could not be read, written or fetched; secrets of URLs are masked."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(_line(message).rstrip("."), _line(remedy))


def _line(text: str) -> str:
    return " ".join(redact(text).split())


class ChecksumError(StorageError):
    """The bytes do not match their checksum."""


class UnsafeArchiveError(StorageError):
    """An archive, or a path read from a dataset, would reach outside its folder or its limits."""


class TransientError(StorageError):
    """A failure that may be temporary, so the same request is worth another attempt.

    Attributes:
        pause: Seconds that the server asked to wait, 0 if it named none.
    """

    pause: float = 0.0


class MissingError(StorageError):
    """There is nothing at an address."""


class NoRangeError(StorageError):
    """The server sends whole files only: it does not support HTTP Range."""


def is_full(error: OSError) -> bool:
    """Return whether a write failed for lack of space."""
    return error.errno in _NO_ROOM
