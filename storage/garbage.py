"""What a store and its work folder hold that nobody needs any more.

Kept is what the newest runs and named runs reach, the published assistant, the one before it and
the newest one, what was made or used lately, and all that went into any of it. Manifests go before
files, so that no manifest ever names a missing file. Nothing here decides correctness: what is
removed too early is made again.
"""

import shutil
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from storage.artifacts import ArtifactStore
from storage.filesystem import LocalFiles, local_error
from storage.leases import Pace, last_holder
from storage.maintenance import Committed, committed
from storage.manifest import Manifest, UnknownManifestError
from storage.published import previous, published, read_history
from storage.runs import read_refs, read_runs

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

    kind: Literal["manifest", "attempt", "lease", "workspace", "note"]
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
    attempts = [name for stage in store.list("artifacts") for name in store.list(stage)]
    known = committed(store)
    for error in known.unreadable.values():
        if isinstance(error, UnknownManifestError):
            raise error
    horizon = time.time() - (max(grace, BUSY_GRACE) if is_busy(store, work) else grace)
    survey = _Survey(store, work, known, attempts, _reached(store, known, keep, horizon), horizon)
    parts = (_manifests, _attempts, _leases, _workspaces, _notes)
    return [garbage for part in parts for garbage in part(survey)]


def is_busy(store: ArtifactStore, work: Path) -> bool:
    """Return whether some process, here or elsewhere, is making an artifact of this store."""
    for path in (work / "locks").glob("*.lock"):
        with _held(path) as free:
            if not free:
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
        manifest = known.manifests.get(key)
        if manifest is None or key in reached:
            continue
        reached.add(key)
        inputs = manifest.payload.get("inputs", {}).items()
        waiting += [by_digest[item] for item in inputs if item in by_digest]
    return reached


def _manifests(survey: _Survey) -> Iterator[Garbage]:
    store = survey.store
    for (stage, fingerprint), manifest in survey.known.manifests.items():
        if (stage, fingerprint) in survey.kept:
            continue
        name = f"manifests/{stage}/{fingerprint}.json"

        def remove(name: str = name, manifest: Manifest = manifest) -> None:
            if store.last_use(manifest) <= survey.horizon:
                store.files.remove(name)

        yield Garbage("manifest", name, 0, remove)


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
            if all(store.read(f"manifests/{s}/{print_}.json") is None for s, print_ in keys):
                store.files.remove(folder)
                store.stamps.forget(folder.rpartition("/")[2])

        size = sum(state.bytes for state in store.files.states(folder).values())
        yield Garbage("attempt", folder, size, remove)


def _leases(survey: _Survey) -> Iterator[Garbage]:
    for folder in survey.store.list("leases"):
        holder = last_holder(survey.store, folder)
        if holder is None or holder.age > DAY:
            yield _file_garbage(survey.store, "lease", folder)


def _workspaces(survey: _Survey) -> Iterator[Garbage]:
    done = {_start(stage, fingerprint) for stage, fingerprint in survey.known.manifests}
    disk = LocalFiles(survey.work)
    for name in disk.list("workspaces"):
        key = name.removeprefix("workspaces/")
        stage, _, start = key.rpartition("-")
        if _start(stage, start) not in done and disk.modified(name) > survey.horizon:
            continue
        path, lock = disk.path(name), survey.work / "locks" / f"{key}.lock"

        def remove(path: Path = path, lock: Path = lock) -> None:
            with _held(lock) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)
                    lock.unlink(missing_ok=True)

        with _held(lock) as free:
            if not free:
                continue
        size = sum(state.bytes for state in disk.states(name).values())
        yield Garbage("workspace", str(path), size, remove)


def _notes(survey: _Survey) -> Iterator[Garbage]:
    store = survey.store
    gone = {f"{stage}/{fingerprint}" for stage, fingerprint in survey.known.manifests}
    attempts = {folder.removeprefix("artifacts/") for folder in survey.attempts}
    for kind, alive in (("used", gone), ("damaged", attempts)):
        for folder in store.list(kind):
            for name in store.list(folder):
                if name.removeprefix(f"{kind}/").removesuffix(".json") not in alive:
                    yield _file_garbage(store, "note", name)
    if isinstance(store.files, LocalFiles):
        names = {attempt.rpartition("/")[2] for attempt in attempts}
        for key in store.stamps.keys() - names:
            yield Garbage("note", f"stamps/{key}", 0, partial(store.stamps.forget, key))
        root = store.files.root
        for path in root.rglob(".*.tmp"):  # of writes that were killed
            name = path.relative_to(root).as_posix()
            if store.files.modified(name) < time.time() - DAY:
                yield _file_garbage(store, "note", name)


def _file_garbage(store: ArtifactStore, kind: Literal["lease", "note"], name: str) -> Garbage:
    return Garbage(kind, name, 0, lambda: store.files.remove(name))


def _start(stage: str, fingerprint: str) -> Key:
    return stage, fingerprint[:_PREFIX]


@contextmanager
def _held(lock: Path) -> Generator[bool]:
    """Hold a lock file for a moment; yield False where a process holds it already."""
    from filelock import FileLock, Timeout

    if not lock.exists():
        yield True
        return
    try:
        with FileLock(lock, timeout=0):
            yield True
    except Timeout:
        yield False
    except OSError as error:
        raise local_error("lock", lock, error) from error
