"""Uploaded images, as OpenAI's `/v1/files` has them: in memory, for a while.

A question names one by `{"type": "file", "file": {"file_id": "file-…"}}`, the only part of a chat
completion that OpenAI's clients know for an upload. Nothing is written to disk, and whoever has
the server's key may use all of them, as with OpenAI's keys.
"""

import secrets
import threading
import time
from typing import Any, NamedTuple

from cachetools import TTLCache

from flows.serve.errors import RequestError
from flows.serve.limits import MEGABYTE, ServeLimits

PREFIX = "file-"
PURPOSES = ("vision", "user_data")


class File(NamedTuple):
    """An uploaded image.

    Attributes:
        id: How it is named.
        name: What the client called it.
        data: Its content.
        purpose: What the client said that it is for.
        created: Seconds since 1970.
    """

    id: str
    name: str
    data: bytes
    purpose: str
    created: int


class Files:
    """Keeps uploads; used by several threads.

    Args:
        limits: How many, how large, how long.
    """

    def __init__(self, limits: ServeLimits) -> None:
        self._limits = limits
        self._kept: TTLCache[str, File] = TTLCache(
            limits.files_bytes, limits.file_seconds, getsizeof=lambda file: len(file.data)
        )
        self._lock = threading.Lock()

    def check(self, size: int | None, purpose: str) -> None:
        """Refuse an upload before it is read.

        Raises:
            RequestError: It is too large or for something else, or there is no room for it.
        """
        if purpose not in PURPOSES:
            raise RequestError(f"purpose must be {' or '.join(PURPOSES)}", param="purpose")
        if not size:
            raise RequestError("the file is empty", param="file")
        if size > self._limits.image_bytes:
            most = self._limits.image_bytes / MEGABYTE
            raise RequestError(f"an image may have {most:.0f} MB at most", 413, param="file")
        with self._lock:
            self._kept.expire()
            self._refuse_more(size)

    def add(self, name: str, data: bytes, purpose: str) -> File:
        """Keep an upload.

        Raises:
            RequestError: There is no room for it any more.
        """
        file = File(PREFIX + secrets.token_hex(16), name, data, purpose, int(time.time()))
        with self._lock:
            self._kept.expire()
            self._refuse_more(len(data))
            self._kept[file.id] = file
        return file

    def get(self, name: str) -> File:
        """Return an upload.

        Raises:
            RequestError: There is none of that name, or no longer.
        """
        with self._lock:
            file = self._kept.get(name)
        if file is None:
            raise RequestError("there is no such file (any more): upload it again", 404)
        return file

    def remove(self, name: str) -> None:
        """Forget an upload.

        Raises:
            RequestError: See `get`.
        """
        self.get(name)
        with self._lock:
            self._kept.pop(name, None)

    def listed(self) -> list[File]:
        """Return all uploads, the oldest first."""
        with self._lock:
            self._kept.expire()
            return list(self._kept.values())

    def file_object(self, file: File) -> dict[str, Any]:
        """Return an upload in the form that OpenAI's clients read."""
        return {
            "id": file.id,
            "object": "file",
            "bytes": len(file.data),
            "created_at": file.created,
            "expires_at": file.created + self._limits.file_seconds,
            "filename": file.name,
            "purpose": file.purpose,
            "status": "processed",
        }

    def _refuse_more(self, size: int) -> None:
        """Refuse rather than drop what somebody else is about to ask about."""
        if (
            len(self._kept) >= self._limits.files
            or self._kept.currsize + size > self._limits.files_bytes
        ):
            raise RequestError("too many files are kept: delete some, or wait until they go", 429)
