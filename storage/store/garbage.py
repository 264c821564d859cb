"""Garbage collection: what in a store and its work folder is no longer needed.

Kept are the artifacts of the newest runs and of named runs, the published assistant, the one before
it and the newest one, whatever was made or used recently, and the inputs of all of these. Manifests
are removed before files, so that no manifest ever names a missing file. Correctness does not depend
on this: what is removed too early is made again.

Only files with our names are removed (`storage.layout`), and nothing behind a symbolic link; the
rest is other people's (`storage.store.foreign_files` counts it).
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storage.errors import StorageError
from storage.filesystem import LocalFiles
from storage.layout import IN_WORKSPACE, LEASE, NUMBERED, WORKSPACE, is_ours, listing_name
from storage.store.artifacts import ArtifactStore
from storage.store.commits import read_listing, write_listing
from storage.store.leases import last_holder, try_lock
from storage.store.listings import states_by_folder
from storage.store.manifest import DamagedManifestError, Manifest
from storage.store.notes import rests, useless_notes
from storage.store.survey import DAY, Key, Survey
from storage.store.workspaces import FOLDER, clear, is_deserted, owner_of, replaced_by

_PREFIX = 16  # characters of the fingerprint with which attempts and workspaces begin


@dataclass(frozen=True)
class Garbage:
    """One item that can be removed.

    Attributes:
        kind: What it is; a note is a small file about something that is gone.
        name: Its path, in the store or in the work folder.
        bytes: Size, where it matters.
        remove: Removes it, unless it came into use since it was found.
    """

    kind: Literal["manifest", "attempt", "lease", "workspace", "note", "downloads"]
    name: str
    bytes: int
    remove: Callable[[], None]


def garbage_of(survey: Survey) -> list[Garbage]:
    """Return what can be removed from a surveyed store, in the order in which it must happen."""
    items = [
        garbage
        for part in (_manifests, _attempts, _leases, _workspaces)
        for garbage in part(survey)
    ]
    notes = [*useless_notes(survey), *rests(survey)]
    return items + [Garbage("note", name, 0, remove) for name, remove in notes]


def _manifests(survey: Survey) -> Iterator[Garbage]:
    store = survey.store
    every = {**survey.known.manifests, **dict.fromkeys(survey.known.unreadable)}
    for key, manifest in every.items():
        name = f"manifests/{key[0]}/{key[1]}.json"
        if key in survey.kept or (not manifest and store.files.modified(name) > survey.horizon):
            continue
        # Files behind a link stay, so their manifest stays too.
        if any(store.files.is_linked(n) for n in (name, manifest.folder if manifest else name)):
            continue

        def remove(key: Key = key, manifest: Manifest | None = manifest, name: str = name) -> None:
            if manifest is not None and store.last_use(manifest) > survey.horizon:
                return
            # If it was made again meanwhile, its manifest differs and stays.
            if _standing(store, key) == manifest and not survey.is_disturbed:
                _remember(store, manifest)
                store.files.remove(name)

        yield Garbage("manifest", name, 0, remove)


def _standing(store: ArtifactStore, key: Key) -> Manifest | None:
    with suppress(DamagedManifestError):
        return store.find(*key)
    return None


def _remember(store: ArtifactStore, manifest: Manifest | None) -> None:
    """Write a listing of our files if only the manifest, about to be removed, names them."""
    if manifest is not None and read_listing(store, manifest.stage, manifest.attempt) is None:
        write_listing(store, manifest)


def _attempts(survey: Survey) -> Iterator[Garbage]:
    store, known = survey.store, survey.known
    owners: dict[str, list[Key]] = {}
    for key, manifest in known.manifests.items():
        owners.setdefault(manifest.folder, []).append(key)
    # A run may still read what was replaced recently, and a damaged manifest may name any attempt.
    recent = [k for k, manifest in known.manifests.items() if manifest.created > survey.horizon]
    guarded = {_start(stage, print_) for stage, print_ in (*recent, *known.unreadable)}
    unneeded = [
        folder
        for folder in survey.attempts
        if not any(key in survey.kept for key in owners.get(folder, []))
    ]
    states = states_by_folder(store, unneeded)
    for folder in unneeded:
        keys = owners.get(folder, [])
        _, stage, attempt = folder.split("/")
        if not keys and _start(stage, attempt) in guarded:
            continue
        if not keys and store.files.modified(folder) > survey.horizon:
            continue
        contents = survey.contents(folder, states[folder])
        if contents.others and not contents.ours:  # our files there were removed before
            continue

        def remove(folder: str = folder, keys: list[Key] = keys) -> None:
            if not survey.is_disturbed and not _is_named(survey, folder, keys):
                _remove_files(survey, folder)

        yield Garbage("attempt", folder, sum(contents.ours.values()), remove)


def _remove_files(survey: Survey, folder: str) -> None:
    """Remove an attempt's files, and if no others remain, its folder and listing too."""
    store, contents = survey.store, survey.contents(folder)
    _, stage, attempt = folder.split("/")
    if contents.others:
        for name in contents.ours:
            store.files.remove(f"{folder}/{name}")
    else:
        store.files.remove(folder)
        store.files.remove(listing_name(stage, attempt))
    store.stamps.forget(attempt)


def _is_named(survey: Survey, folder: str, owners: Collection[Key]) -> bool:
    """Return whether a manifest names a folder of files by now; an unreadable one counts."""
    store, (_, stage, attempt) = survey.store, folder.split("/")
    for name in filter(is_ours, store.list(f"manifests/{stage}")):
        key = stage, Path(name).stem
        old = key in survey.known.manifests and key not in owners
        if old and _start(*key) != _start(stage, attempt):
            continue
        try:
            manifest = store.find(*key)
        except StorageError:
            return True
        if manifest is not None and manifest.attempt == attempt:
            return True
    return False


def _leases(survey: Survey) -> Iterator[Garbage]:
    store = survey.store
    for folder in store.list("leases"):
        if not LEASE.fullmatch(folder) or store.files.is_linked(folder):
            continue
        objects = store.list(folder)
        ours = [
            name
            for name in objects
            if NUMBERED.fullmatch(Path(name).name) and not store.files.is_linked(name)
        ]
        if objects and not ours:
            continue
        holder = last_holder(store, folder)
        if holder is None or holder.age > DAY:
            gone = [folder] if ours == objects else ours

            def remove(gone: list[str] = gone) -> None:
                for name in gone:
                    store.files.remove(name)

            yield Garbage("lease", folder, 0, remove)


def _workspaces(survey: Survey) -> Iterator[Garbage]:
    standing = {_start(*key): one.attempt for key, one in survey.known.manifests.items()}
    disk = LocalFiles(survey.work)
    is_there = disk.path(FOLDER).is_dir() and not survey.is_work_outside
    for name in disk.list(FOLDER) if is_there else []:
        path = disk.path(name)
        if not WORKSPACE.fullmatch(path.name) or disk.is_linked(name):
            continue
        modified = disk.modified(name)
        stage, start, unguarded = owner_of(path.name)
        # If the artifact exists, its workspace is a leftover, unless it is to replace the artifact.
        attempt = standing.get((stage, start), "")
        rest = bool(attempt) and replaced_by(path) != attempt
        if not is_deserted(modified) if unguarded else not rest and modified > survey.horizon:
            continue
        lock = survey.work / "locks" / f"{path.name}.lock"

        def remove(path: Path = path, lock: Path = lock, modified: float = modified) -> None:
            with try_lock(lock) as free:
                if free is not False and disk.modified(f"{FOLDER}/{path.name}") == modified:
                    clear(path)

        with try_lock(lock) as free:
            states = {} if free is False else disk.states(name)
        ours = {n: s.bytes for n, s in states.items() if IN_WORKSPACE.fullmatch(n.split("/")[0])}
        if free is not False and (ours or not states):
            yield Garbage("workspace", str(path), sum(ours.values()), remove)


def _start(stage: str, fingerprint: str) -> Key:
    return stage, fingerprint[:_PREFIX]
