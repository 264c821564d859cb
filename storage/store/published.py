"""Which artifact is the published one: a pointer with its history, kept beside the artifacts.

`published/<number>.json` are entries that are only ever added; the newest one that moved the
pointer says what is published. Of two writers only one gets a number; the other decides again,
because what it compared with may no longer be published.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from storage.errors import StorageError
from storage.layout import is_ours
from storage.store.artifacts import ArtifactStore

FOLDER = "published"
_MOVES = ("published", "forced", "rolled back")


@dataclass(frozen=True)
class Entry:
    """One decision about the pointer.

    Attributes:
        number: Its place in the history.
        action: What was done; `refused` leaves the pointer where it was.
        run: Run whose assistant it is about.
        fingerprint: Fingerprint of the `publish` artifact.
        digest: Its digest.
        reason: Why, in one line.
        against: Digest that was published when it was decided, "" if none.
        created: When, in seconds since 1970.
    """

    number: int
    action: Literal["published", "forced", "rolled back", "refused"]
    run: str
    fingerprint: str
    digest: str
    reason: str
    against: str
    created: float

    @property
    def moved(self) -> bool:
        """Whether the pointer moved."""
        return self.action in _MOVES


def read_history(store: ArtifactStore) -> list[Entry]:
    """Return all decisions, newest first.

    Raises:
        StorageError: An entry cannot be read.
    """
    entries = []
    for name in filter(is_ours, store.list(FOLDER)):
        data = store.read(name)
        if data is not None:
            entries.append(_entry(store, name, data))
    return sorted(entries, key=lambda entry: -entry.number)


def last_number(store: ArtifactStore) -> int:
    """Return the number of the newest decision, 0 where there is none; reads no entry.

    Raises:
        StorageError: The store cannot be listed.
    """
    names = (PurePosixPath(name).stem for name in store.list(FOLDER))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def published(history: list[Entry]) -> Entry | None:
    """Return the entry that says what is published now, None where nothing is."""
    return next((entry for entry in history if entry.moved), None)


def previous(history: list[Entry]) -> Entry | None:
    """Return the entry that a rollback restores: the one published before, None if there is none.

    An entry that was rolled back is not restored, so several rollbacks go further back.
    """
    standing: list[Entry] = []
    for entry in reversed([each for each in history if each.moved]):
        if entry.action == "rolled back":
            while standing and standing[-1].digest != entry.digest:
                standing.pop()
            standing = standing or [entry]
        elif not standing or standing[-1].digest != entry.digest:
            standing.append(entry)
    return standing[-2] if len(standing) > 1 else None


def add_entry(store: ArtifactStore, history: list[Entry], **values: Any) -> Entry | None:
    """Write the next entry of a history and return it, None if another writer was faster."""
    number = history[0].number + 1 if history else 1
    entry = Entry(number=number, created=time.time(), **values)
    data = json.dumps(asdict(entry), indent=1).encode()
    return entry if store.create(f"{FOLDER}/{number:06d}.json", data) else None


def _entry(store: ArtifactStore, name: str, data: bytes) -> Entry:
    try:
        entry = Entry(**json.loads(data))
        if int(PurePosixPath(name).stem) == entry.number:
            return entry
    except (ValueError, TypeError):
        pass
    raise StorageError(
        f"{store.uri}/{name} is not a decision about what is published",
        "delete that one file: the artifacts do not depend on it",
    )
