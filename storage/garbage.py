"""What a store and its work folder hold that nobody needs any more.

Kept is what the newest runs and named runs reach, the published assistant, the one before it and
the newest one, what was made or used lately, and all that went into any of it. Manifests go before
files, so that no manifest ever names a missing file. Nothing here decides correctness: what is
removed too early is made again.

A run shows that it is there before it looks for anything (`storage.leases.presence`). Here that is
asked before anything is listed, and once more before anything is removed. So a run either finds no
manifest and makes the artifact, or it found one and is seen, and the files stay.
"""

import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from storage.artifacts import ArtifactStore
from storage.errors import StorageError
from storage.filesystem import LocalFiles, walk
from storage.leases import Pace, last_holder, try_lock
from storage.maintenance import Committed, committed
from storage.manifest import DamagedManifestError, Manifest, UnknownManifestError
from storage.published import previous, published, read_history
from storage.runs import read_refs, read_runs
from storage.workspaces import FOLDER, is_deserted, owner_of, replaced_by

DAY = 86_400.0
BUSY_GRACE = 7 * DAY  # at least, while a pipeline is at work
PUBLISHED = "publish"  # the stage whose newest artifact is always kept
_PREFIX = 16  # characters of the fingerprint with which attempts and workspaces begin

Key = tuple[str, str]  # stage and fingerprint


@dataclass(frozen=True)
class Garbage:
    """One thing that can go.

    Attributes:
        kind: What it is; a note is a small file about something that is gone.
        name: Its place, in the store or in the work folder.
        bytes: Size, where it matters.
        remove: Removes it, unless it came into use since it was found.
    """

    kind: Literal["manifest", "attempt", "lease", "workspace", "note", "downloads"]
    name: str
    bytes: int
    remove: Callable[[], None]


@dataclass(frozen=True)
class _Survey:
    store: ArtifactStore
    work: Path
    known: Committed
    attempts: Collection[str]  # listed before the manifests, so a fresh commit is never among them
    kept: Collection[Key]
    horizon: float  # what was used after this time stays
    trusting: bool  # whether younger things go than a run at work may need

    @property
    def is_disturbed(self) -> bool:
        """Whether a run has begun since, which may need what nobody needed before."""
        return self.trusting and is_busy(self.store, self.work)


def find_garbage(store: ArtifactStore, work: Path, *, keep: int, grace: float) -> list[Garbage]:
    """Return what can go, in the order in which it must be removed.

    Args:
        store: The store.
        work: Folder of workspaces and locks of this machine.
        keep: How many of the newest runs keep their artifacts.
        grace: Seconds for which anything made or used stays; at least a week while a pipeline is
            at work, because that may come back to what it used when it started.

    Raises:
        UnknownManifestError: A newer version works with this store; it alone knows what it needs.
        StorageError: The store cannot be read.
    """
    # In this order: what is committed or used from here on is younger than the horizon.
    grace = max(grace, BUSY_GRACE) if is_busy(store, work) else grace
    horizon = time.time() - grace
    attempts = [name for stage in store.list("artifacts") for name in store.list(stage)]
    known = committed(store)
    for error in known.unreadable.values():
        if isinstance(error, UnknownManifestError):
            raise error
    kept = _reached(store, known, keep, horizon)
    survey = _Survey(store, work, known, attempts, kept, horizon, grace < BUSY_GRACE)
    parts = (_manifests, _attempts, _leases, _workspaces, _notes, _local_notes)
    return [garbage for part in parts for garbage in part(survey)]


def is_busy(store: ArtifactStore, work: Path) -> bool:
    """Return whether some run, here or elsewhere, is at work on this store."""
    for path in (work / "locks").glob("*.lock"):
        with try_lock(path) as free:
            if free is False:  # on a disk without locks, a lease tells
                return True
    holders = [last_holder(store, folder) for folder in store.list("leases")]
    return any(h is not None and not h.is_done and h.age < Pace().abandoned for h in holders)


def _reached(store: ArtifactStore, known: Committed, keep: int, horizon: float) -> set[Key]:
    named = set(read_refs(store).values())
    runs = [
        record
        for number, record in enumerate(read_runs(store))
        if number < keep or record["run"] in named
    ]
    waiting = [(s, made["fingerprint"]) for run in runs for s, made in run["stages"].items()]
    newest = sorted(known.manifests.items(), key=lambda item: item[1].created)
    waiting += [key for key, _ in newest if key[0] == PUBLISHED][-1:]
    history = read_history(store)
    pointed = [entry for entry in (published(history), previous(history)) if entry is not None]
    waiting += [(PUBLISHED, entry.fingerprint) for entry in pointed]
    waiting += [key for key, manifest in newest if store.last_use(manifest) > horizon]
    by_digest = {(manifest.stage, manifest.digest): key for key, manifest in newest}
    reached: set[Key] = set()
    while waiting:
        key = waiting.pop()
        if key in reached:
            continue
        reached.add(key)
        manifest = known.manifests.get(key)
        if manifest is None:  # gone, or damaged and to be made again
            continue
        inputs = manifest.payload.get("inputs", {}).items()
        waiting += [by_digest[item] for item in inputs if item in by_digest]
    return reached


def _manifests(survey: _Survey) -> Iterator[Garbage]:
    store = survey.store
    every = {**survey.known.manifests, **dict.fromkeys(survey.known.unreadable)}
    for key, manifest in every.items():
        name = f"manifests/{key[0]}/{key[1]}.json"
        if key in survey.kept or (not manifest and store.files.modified(name) > survey.horizon):
            continue

        def remove(key: Key = key, manifest: Manifest | None = manifest, name: str = name) -> None:
            if manifest is not None and store.last_use(manifest) > survey.horizon:
                return
            # Made again meanwhile, it is another one.
            if _standing(store, key) == manifest and not survey.is_disturbed:
                store.files.remove(name)

        yield Garbage("manifest", name, 0, remove)


def _standing(store: ArtifactStore, key: Key) -> Manifest | None:
    with suppress(DamagedManifestError):
        return store.find(*key)
    return None


def _attempts(survey: _Survey) -> Iterator[Garbage]:
    store, known = survey.store, survey.known
    owners: dict[str, list[Key]] = {}
    for key, manifest in known.manifests.items():
        owners.setdefault(manifest.folder, []).append(key)
    # A run may still read what was replaced lately, and who knows what a damaged manifest names.
    recent = [k for k, manifest in known.manifests.items() if manifest.created > survey.horizon]
    guarded = {_start(stage, print_) for stage, print_ in (*recent, *known.unreadable)}
    for folder in survey.attempts:
        keys = owners.get(folder, [])
        if any(key in survey.kept for key in keys):
            continue
        _, stage, attempt = folder.split("/")
        if not keys and _start(stage, attempt) in guarded:
            continue
        if not keys and store.files.modified(folder) > survey.horizon:
            continue

        def remove(folder: str = folder, keys: list[Key] = keys) -> None:
            if not survey.is_disturbed and not _is_named(survey, folder, keys):
                store.files.remove(folder)
                store.stamps.forget(folder.rpartition("/")[2])

        size = sum(state.bytes for state in store.files.states(folder).values())
        yield Garbage("attempt", folder, size, remove)


def _leases(survey: _Survey) -> Iterator[Garbage]:
    for folder in survey.store.list("leases"):
        holder = last_holder(survey.store, folder)
        if holder is None or holder.age > DAY:
            yield _file_garbage(survey.store, "lease", folder)


def _is_named(survey: _Survey, folder: str, owners: Collection[Key]) -> bool:
    """Return whether a manifest names a folder of files by now; one that cannot be read might."""
    store, (_, stage, attempt) = survey.store, folder.split("/")
    for name in store.list(f"manifests/{stage}"):
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


def _workspaces(survey: _Survey) -> Iterator[Garbage]:
    standing = {_start(*key): one.attempt for key, one in survey.known.manifests.items()}
    disk = LocalFiles(survey.work)
    for name in disk.list(FOLDER):
        path, modified = disk.path(name), disk.modified(name)
        stage, start, unguarded = owner_of(path.name)
        # Where the artifact stands, what remains is a rest, unless it is to take its place.
        attempt = standing.get((stage, start), "")
        rest = bool(attempt) and replaced_by(path) != attempt
        if not is_deserted(modified) if unguarded else not rest and modified > survey.horizon:
            continue
        lock = survey.work / "locks" / f"{path.name}.lock"

        def remove(path: Path = path, lock: Path = lock, modified: float = modified) -> None:
            with try_lock(lock) as free:
                if free is not False and disk.modified(f"{FOLDER}/{path.name}") == modified:
                    shutil.rmtree(path, ignore_errors=True)

        with try_lock(lock) as free:
            size = 0 if free is False else sum(s.bytes for s in disk.states(name).values())
        if free is not False:
            yield Garbage("workspace", str(path), size, remove)


def _notes(survey: _Survey) -> Iterator[Garbage]:
    store = survey.store
    keys = {f"{stage}/{fingerprint}" for stage, fingerprint in survey.known.manifests}
    attempts = {folder.removeprefix("artifacts/") for folder in survey.attempts}
    for kind, alive in (("used", keys), ("damaged", attempts)):
        for folder in store.list(kind):
            for name in store.list(folder):
                if name.removeprefix(f"{kind}/").removesuffix(".json") not in alive:
                    yield Garbage("note", name, 0, partial(_remove_note, store, name))
    runs = {Path(name).stem for name in store.list("runs")} | {"dataset"}
    for name in store.list("reports"):
        if Path(name).stem not in runs:
            yield Garbage("note", name, 0, partial(_remove_note, store, name))


def _local_notes(survey: _Survey) -> Iterator[Garbage]:
    store = survey.store
    if not isinstance(store.files, LocalFiles):
        return
    attempts = {folder.rpartition("/")[2] for folder in survey.attempts}
    for key in store.stamps.keys() - attempts:
        yield Garbage("note", f"stamps/{key}", 0, partial(store.stamps.forget, key))
    for path in walk(store.files.root):
        if path.name.startswith(".") and path.suffix == ".tmp":  # of writes that were killed
            name = path.relative_to(store.files.root).as_posix()
            if store.files.modified(name) < time.time() - DAY:
                yield _file_garbage(store, "note", name)


def _remove_note(store: ArtifactStore, name: str) -> None:
    """Remove a note, unless what it is about has appeared since it was found."""
    kind, _, about = name.partition("/")
    about = about.rpartition(".")[0]
    subjects = {"used": f"manifests/{about}.json", "reports": f"runs/{about}.json"}
    if kind == "damaged":
        if not store.files.states(f"artifacts/{about}"):
            store.files.remove(name)
    elif store.read(subjects[kind]) is None:
        store.files.remove(name)


def _file_garbage(store: ArtifactStore, kind: Literal["lease", "note"], name: str) -> Garbage:
    return Garbage(kind, name, 0, lambda: store.files.remove(name))


def _start(stage: str, fingerprint: str) -> Key:
    return stage, fingerprint[:_PREFIX]
