"""Which local files were verified, so that none is hashed twice and a change is noticed.

A file is identified by its size, mtime and inode, as in git's index: while they are the same as
when it was hashed, it counts as intact; if one differs, it is hashed again. Bit rot under unchanged
metadata is found by `storage.store.verify.verify`.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from storage.filesystem import FileState, hash_file, state_of
from storage.store.manifest import FileRecord


class Stamps:
    """Records of verified local files; losing one only costs another hash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, dict[str, FileState]] = {}

    def fault(self, key: str, path: Path, record: FileRecord) -> str:
        """Return what is wrong with a file, "" if it is intact; hash it if that is not known.

        Raises:
            OSError: The file cannot be read.
        """
        try:
            state = state_of(path)
        except FileNotFoundError:
            return f"{record.name} is missing"
        if state.bytes != record.bytes:
            return f"{record.name} has {state.bytes} bytes instead of {record.bytes}"
        if self._of(key).get(record.name) == state:
            return ""
        if hash_file(path, hashlib.sha256()) != record.sha256:
            return f"{record.name} was altered"
        self.add(key, {record.name: state})
        return ""

    def altered(self, key: str, record: FileRecord, state: FileState) -> bool:
        """Return whether a file's metadata changed since it was verified."""
        known = self._of(key).get(record.name)
        return known is not None and known != state

    def add(self, key: str, states: Mapping[str, FileState]) -> None:
        """Record that files are intact."""
        self._of(key).update(states)
        self._save(key)

    def drop(self, key: str, name: str) -> None:
        """Forget a file, because it was found damaged."""
        if self._of(key).pop(name, None) is not None:
            self._save(key)

    def keys(self) -> set[str]:
        """Return the artifacts that have records."""
        return {path.stem for path in self._folder.glob("*.json")}

    def forget(self, key: str) -> None:
        """Forget all files of an artifact."""
        self._known.pop(key, None)
        self._path(key).unlink(missing_ok=True)

    def _of(self, key: str) -> dict[str, FileState]:
        if key not in self._known:
            self._known[key] = self._load(key)
        return self._known[key]

    def _load(self, key: str) -> dict[str, FileState]:
        try:
            values = json.loads(self._path(key).read_bytes())
            return {str(name): FileState(*map(int, state)) for name, state in values.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # never written, truncated, or of another version

    def _save(self, key: str) -> None:
        path = self._path(key)
        temporary = path.with_suffix(f".{id(self):x}.tmp")
        with suppress(OSError):  # a read-only folder: known to this process only
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._of(key)))
            temporary.replace(path)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"
