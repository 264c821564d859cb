"""A bounded local cache of immutable files from a remote store, checked by hash on arrival."""

import hashlib
import uuid
from pathlib import Path
from typing import Any

from storage.errors import StorageError
from storage.filesystem import hash_file, redacted
from storage.manifest import FileRecord


class ReadCache:
    """Whole local copies of remote files; least recently used ones go first.

    Args:
        root: Local folder of the cache.
        limit: Bytes above which old files are dropped.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root = root
        self.limit = limit

    def fetch(self, fs: Any, remote: str, record: FileRecord, digest: str) -> Path:
        """Return a local copy of a remote file, downloading it where needed.

        Files of one artifact keep their names below a folder of its digest, so that libraries
        can load a whole directory.

        Raises:
            StorageError: The file cannot be read, or its content is not what was committed.
        """
        target = self.root / digest[:32] / record.name
        if target.is_file() and target.stat().st_size == record.bytes:
            target.touch()
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            fs.get_file(remote, str(temporary))
            if hash_file(temporary, hashlib.sha256()) != record.sha256:
                raise StorageError(
                    f"{redacted(remote)} is damaged: its hash is not the committed one",
                    "run `phivision verify`, then `phivision run` to make it again",
                )
            temporary.replace(target)
        except OSError as error:
            raise StorageError(
                f"cannot read {redacted(remote)}: {error.strerror or error}",
                "check the store, then run again",
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        self._shrink(keep=target)
        return target

    def _shrink(self, keep: Path) -> None:
        files = [path for path in self.root.rglob("*") if path.is_file()]
        stats = sorted(((path.stat(), path) for path in files), key=lambda pair: pair[0].st_mtime)
        excess = sum(stat.st_size for stat, _ in stats) - self.limit
        for stat, path in stats:
            if excess <= 0:
                return
            # Files in use stay readable: an unlinked file lives on until it is closed.
            if path.parent != keep.parent:
                path.unlink(missing_ok=True)
                excess -= stat.st_size
