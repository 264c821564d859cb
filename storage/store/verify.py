"""Verifying a store: every committed file is hashed, and what is damaged is marked.

The mark makes the next run make that artifact again. Verifying is safe beside a running pipeline:
it reads, and a mark names one attempt, so it can never hit an artifact that was made again.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from storage.errors import StorageError
from storage.filesystem import FileState, LocalFiles
from storage.store.artifacts import ArtifactStore
from storage.store.listings import marked_attempts, states_by_folder
from storage.store.manifest import FileRecord, Manifest

READERS = 8  # files hashed at once
ALTERED = "altered"
_SHARD_FILE = re.compile(r"(?:index|patches)-(\d+)\.parquet")


@dataclass(frozen=True)
class Damage:
    """An artifact that is not what was committed.

    Attributes:
        stage: Its stage.
        fingerprint: Its fingerprint.
        faults: What is wrong, by file name; the manifest itself has the name "".
    """

    stage: str
    fingerprint: str
    faults: Mapping[str, str]


@dataclass(frozen=True)
class Committed:
    """All manifests of a store, by stage and fingerprint.

    Attributes:
        manifests: Those that can be read.
        unreadable: Why others cannot.
    """

    manifests: Mapping[tuple[str, str], Manifest]
    unreadable: Mapping[tuple[str, str], StorageError]

    @property
    def folders(self) -> dict[str, Manifest]:
        """One manifest for each folder of files; an adopted artifact shares its folder."""
        return {manifest.folder: manifest for manifest in self.manifests.values()}

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(record.bytes for one in self.folders.values() for record in one.files)


def committed(store: ArtifactStore) -> Committed:
    """Return all manifests of a store."""
    manifests: dict[tuple[str, str], Manifest] = {}
    unreadable: dict[tuple[str, str], StorageError] = {}
    for folder in store.list("manifests"):
        stage = folder.removeprefix("manifests/")
        for fingerprint, entry in store.entries(stage).items():
            if isinstance(entry, Manifest):
                manifests[stage, fingerprint] = entry
            else:
                unreadable[stage, fingerprint] = entry
    return Committed(manifests, unreadable)


def verify(store: ArtifactStore, known: Committed, advance: Callable[[int], None]) -> list[Damage]:
    """Hash every committed file, mark what is damaged and unmark what is intact again.

    Raises:
        StorageError: A remote store cannot be reached; that is not damage.
    """
    faults = _hash_all(store, known, advance)
    damages = [
        Damage(stage, fingerprint, {"": error.message})
        for (stage, fingerprint), error in known.unreadable.items()
    ]
    marked: set[str] = set()
    with suppress(StorageError):  # then no mark can be removed either
        marked = marked_attempts(store, {stage for stage, _ in known.manifests})
    for manifest in known.manifests.values():
        bad = {name: fault for name, fault in faults[manifest.folder].items() if fault}
        bad |= _damaged_pages(store, manifest, bad)
        if _stands_damaged(store, manifest, bad, marked):
            damages.append(Damage(manifest.stage, manifest.fingerprint, bad))
    return damages


def _hash_all(
    store: ArtifactStore, known: Committed, advance: Callable[[int], None]
) -> dict[str, dict[str, str]]:
    """Return what is wrong with each file, "" if nothing, by folder and name."""
    lock = threading.Lock()
    states = states_by_folder(store, known.folders)
    jobs = [(one, record) for one in known.folders.values() for record in one.files]

    def count(amount: int) -> None:
        with lock:
            advance(amount)

    def look(job: tuple[Manifest, FileRecord]) -> str:
        manifest, record = job
        return _fault(store, manifest, record, states[manifest.folder].get(record.name), count)

    faults: dict[str, dict[str, str]] = {folder: {} for folder in known.folders}
    with ThreadPoolExecutor(READERS) as pool:
        for (manifest, record), fault in zip(jobs, pool.map(look, jobs), strict=True):
            faults[manifest.folder][record.name] = fault
    if store.local:
        for folder, manifest in known.folders.items():
            whole = [name for name, fault in faults[folder].items() if not fault]
            store.stamps.add(manifest.attempt, {name: states[folder][name] for name in whole})
    return faults


def _damaged_pages(
    store: ArtifactStore, manifest: Manifest, bad: Mapping[str, str]
) -> dict[str, str]:
    """Return which shard each altered file of features belongs to, and what its pages say.

    A file's hash finds any damage; the checksums of Parquet's pages tell where it is.
    """
    from storage.features.shards import ShardError, verify_shard

    details: dict[str, str] = {}
    if not isinstance(store.files, LocalFiles):
        return details
    folder = store.files.path(manifest.folder)
    for name, fault in bad.items():
        shard = _SHARD_FILE.fullmatch(name)
        if fault == ALTERED and shard:
            try:
                verify_shard(folder, int(shard[1]))
                detail = "no row is damaged"
            except (ShardError, OSError) as error:
                detail = error.message if isinstance(error, ShardError) else str(error)
                detail = detail.removeprefix(f"{folder}/").removeprefix(f"{name}: ")
            details[name] = f"{fault}: shard {int(shard[1])}: {detail}"
    return details


def _fault(
    store: ArtifactStore,
    manifest: Manifest,
    record: FileRecord,
    state: FileState | None,
    count: Callable[[int], None],
) -> str:
    if state is None:
        return "missing"
    if state.bytes != record.bytes:
        return f"{state.bytes} bytes instead of {record.bytes}"
    whole = hashlib.sha256()
    try:
        for chunk in store.files.chunks(f"{manifest.folder}/{record.name}"):
            whole.update(chunk)
            count(len(chunk))
    except StorageError as error:
        # If its manifest is gone, gc removed it meanwhile; else an unreachable store is no damage.
        if not store.local and store.find(manifest.stage, manifest.fingerprint) == manifest:
            raise
        return error.message  # a bad sector is damage like any other
    return "" if whole.hexdigest() == record.sha256 else ALTERED


def _stands_damaged(
    store: ArtifactStore, manifest: Manifest, bad: Mapping[str, str], marked: Set[str]
) -> bool:
    """Mark or unmark an artifact; return whether it is damaged and was not replaced."""
    with suppress(StorageError):  # a read-only store: the report is all that can be done
        if not bad:
            if manifest.attempt in marked:
                store.clear_mark(manifest)
            return False
        current = store.find(manifest.stage, manifest.fingerprint)
        if current is None or current.attempt != manifest.attempt:
            return False  # made again or removed meanwhile
        store.mark_damaged(manifest, sorted(bad))
    return bool(bad)
