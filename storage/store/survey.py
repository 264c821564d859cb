"""What is in a store and its work folder, and what of it is still needed.

A run signals its presence before it looks for anything (`storage.store.leases.presence`). Here
that is checked before anything is listed, and again before anything is removed. So a run either
finds no manifest and makes the artifact, or its presence is noticed and the files stay.
"""

import time
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from storage.filesystem import FileState, LocalFiles
from storage.layout import ATTEMPT, LOCK, written_as
from storage.store.artifacts import ArtifactStore
from storage.store.commits import read_listing
from storage.store.leases import Pace, last_holder, try_lock
from storage.store.listings import last_uses
from storage.store.manifest import Manifest, UnknownManifestError
from storage.store.mark import require_store
from storage.store.published import previous, published, read_history
from storage.store.runs import read_refs, read_runs
from storage.store.verify import Committed, committed

DAY = 86_400.0
BUSY_GRACE = 7 * DAY  # at least, while a pipeline is running
PUBLISHED = "publish"  # the stage whose newest artifact is always kept

Key = tuple[str, str]  # stage and fingerprint


@dataclass(frozen=True)
class Contents:
    """The files of an attempt's folder, by name relative to it.

    Attributes:
        ours: Size of each file that was stored.
        others: Files that are not ours.
    """

    ours: Mapping[str, int]
    others: Set[str]


@dataclass(frozen=True)
class Survey:
    """A store at one moment.

    Attributes:
        store: The store.
        work: Folder of workspaces and locks of this machine.
        known: What is committed.
        attempts: Folders of files; listed before the manifests, so a fresh commit is never among
            them.
        kept: Artifacts that are still needed.
        horizon: What was used after this time stays.
        trusting: Whether the horizon is later than a running pipeline would need.
    """

    store: ArtifactStore
    work: Path
    known: Committed
    attempts: Collection[str]
    kept: Collection[Key]
    horizon: float
    trusting: bool

    @property
    def is_disturbed(self) -> bool:
        """Whether a run has started since, which may need what was not needed before."""
        return self.trusting and is_busy(self.store, self.work)

    @property
    def is_work_outside(self) -> bool:
        """Whether the work folder is in the store only through a symbolic link."""
        files, work = self.store.files, self.work.absolute()
        if not isinstance(files, LocalFiles) or not work.is_relative_to(files.root):
            return False
        return files.is_linked(work.relative_to(files.root).as_posix())

    def contents(self, folder: str, states: Mapping[str, FileState] | None = None) -> Contents:
        """Return the files in an attempt's folder.

        Args:
            folder: The folder.
            states: What is in it, if that was listed already.
        """
        files, is_stored = self.store.files, self.stored_in(folder)
        states = files.states(folder) if states is None else states
        links = files.links(folder)
        sizes = {
            name: state.bytes
            for name, state in states.items()
            if name not in links and is_stored(name)
        }
        return Contents(sizes, (states.keys() | links) - sizes.keys())

    def stored_in(self, folder: str) -> Callable[[str], bool]:
        """Return a predicate: whether a file name in an attempt's folder is ours.

        Without a manifest or listing, all files in it count as ours because of the folder's name.
        """
        manifest = self._by_folder.get(folder)
        if manifest is not None:
            listed = {record.name for record in manifest.files}
        else:
            _, stage, attempt = folder.split("/")
            known = read_listing(self.store, stage, attempt)
            if known is None:
                return lambda _: True
            listed = known
        return lambda name: name in listed or written_as(name) in listed

    @cached_property
    def _by_folder(self) -> Mapping[str, Manifest]:
        return self.known.folders


def take_survey(store: ArtifactStore, work: Path, *, keep: int, grace: float) -> Survey:
    """Survey a store.

    Args:
        store: The store.
        work: Folder of workspaces and locks of this machine.
        keep: How many of the newest runs keep their artifacts.
        grace: Seconds for which anything made or used stays; at least a week while a pipeline is
            running, because it may use again what it used when it started.

    Raises:
        UnknownManifestError: A newer version uses this store; only that knows what it needs.
        StorageError: The place is not a store, or cannot be read.
    """
    require_store(store.files)
    # In this order: what is committed or used from here on is younger than the horizon.
    grace = max(grace, BUSY_GRACE) if is_busy(store, work) else grace
    horizon = time.time() - grace
    attempts = [
        name
        for stage in store.list("artifacts")
        for name in store.list(stage)
        if ATTEMPT.fullmatch(name.rpartition("/")[2]) and not store.files.is_linked(name)
    ]
    known = committed(store)
    for error in known.unreadable.values():
        if isinstance(error, UnknownManifestError):
            raise error
    kept = _reached(store, known, keep, horizon)
    return Survey(store, work, known, attempts, kept, horizon, grace < BUSY_GRACE)


def is_busy(store: ArtifactStore, work: Path) -> bool:
    """Return whether any run, here or elsewhere, is using this store."""
    for path in (work / "locks").glob("*.lock"):
        if not LOCK.fullmatch(path.name) or path.is_symlink():
            continue  # trying a foreign lock file would empty and remove it
        with try_lock(path) as free:
            if free is False:  # on a disk without locks, leases are checked below
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
    uses = last_uses(store, [manifest for _, manifest in newest])
    waiting += [key for (key, _), used in zip(newest, uses, strict=True) if used > horizon]
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
