"""Locks that avoid duplicate work: flock on a local disk, lease objects with heartbeat elsewhere.

A flock ends with its process, kill -9 included. On an object store a lease is a series of numbered
objects, each made by exclusive creation, of which the last one counts: so exactly one of many
waiters takes over from a dead holder. A holder counts as dead when its object has not changed for
`Pace.stale` seconds on the waiter's own clock; clocks of different machines are compared only to
recognise a lease abandoned long ago. Two holders at once would only do the same work twice.
"""

import errno
import json
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import StorageError
from storage.filesystem import local_error
from storage.layout import NUMBERED
from storage.store.artifacts import ArtifactStore

if TYPE_CHECKING:
    from filelock import BaseFileLock

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP})


@dataclass(frozen=True)
class Pace:
    """Timing of leases; all in seconds.

    Attributes:
        beat: Between two refreshes of a lease.
        stale: Without a refresh, as seen by a waiter, until the holder counts as dead.
        abandoned: Age by the clock after which a lease counts as free.
        poll: Between two checks by a waiter.
    """

    beat: float = 10.0
    stale: float = 60.0
    abandoned: float = 900.0
    poll: float = 1.0


@contextmanager
def lease(
    store: ArtifactStore,
    locks: Path,
    key: str,
    *,
    say: Callable[[str], None],
    pace: Pace | None = None,
) -> Generator[bool]:
    """Hold the right to make one artifact; wait for another holder to finish or to die.

    Yields whether it is exclusive on this machine; where the disk has no locks it is not, and each
    process works in its own folder.

    Args:
        store: The store whose artifact is made.
        locks: Local folder of lock files, for the processes of this machine.
        key: Names the artifact.
        say: Called once if another process holds the lock.
        pace: Timing of leases on object stores.

    Raises:
        StorageError: The folder or the store cannot be written.
    """
    with _flock(locks / f"{key}.lock", say) as locked:
        if store.local:
            yield locked
        else:
            with _Lease(store, f"leases/{key}", pace or Pace()).held(say):
                yield locked


@contextmanager
def presence(store: ArtifactStore, locks: Path, pace: Pace | None = None) -> Generator[None]:
    """Signal that a run is active, also between two stages: see `storage.store.survey`.

    Where nothing can be written there is no signal, and the run continues: there, nothing can be
    removed either.
    """
    name = f"run-{uuid.uuid4().hex}"

    def forget() -> None:
        with suppress(StorageError):  # gc removes leftovers
            store.files.remove(f"leases/{name}")

    with ExitStack() as stack:
        with suppress(StorageError):
            locked = stack.enter_context(_flock(locks / f"{name}.lock", lambda _: None))
            if not (locked and store.local):
                stack.callback(forget)
                claim = _Lease(store, f"leases/{name}", pace or Pace())
                stack.enter_context(claim.held(lambda _: None))
        yield


@contextmanager
def try_lock(path: Path) -> Generator[bool | None]:
    """Try to hold a lock file, without waiting.

    Yields True while it is held; False if a process holds it, None where the disk has no locks.

    Raises:
        StorageError: The folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock, free = FileLock(path), True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        free = False
    except (OSError, NotImplementedError) as error:
        _raise_unless_lockless(path, error)
        free = None
    try:
        yield free
    finally:
        _give_back(lock, path, held=bool(free))


@contextmanager
def _flock(path: Path, say: Callable[[str], None]) -> Generator[bool]:
    from filelock import FileLock, Timeout  # imports asyncio, too slow for `plan`

    lock, locked = FileLock(path), True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"  waiting for another process that holds {path.stem}")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        _raise_unless_lockless(path, error)
        locked = False
        say(f"  {path.parent} is on a disk without locks: work may be done twice")
    try:
        yield locked
    finally:
        _give_back(lock, path, held=locked)


def _raise_unless_lockless(path: Path, error: Exception) -> None:
    if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
        raise local_error("lock", path, error) from error


def _give_back(lock: "BaseFileLock", path: Path, *, held: bool) -> None:
    # Removed while still held: filelock notices that its lock file is unlinked and retries. A lock
    # file that is not held may be another process's.
    if held:
        with suppress(OSError):
            path.unlink()
    lock.release()


@dataclass(frozen=True)
class Holder:
    """The last object of a lease, as it was read."""

    number: int
    data: bytes

    @property
    def is_done(self) -> bool:
        """Whether it was released."""
        return bool(self._field("done", True))

    @property
    def age(self) -> float:
        """Seconds since the last refresh, by the clocks of two machines."""
        return time.time() - float(self._field("beat", 0.0))

    def _field(self, name: str, default: float) -> float:
        # An unreadable object counts as released.
        with suppress(ValueError, TypeError, KeyError):
            return float(json.loads(self.data)[name])
        return default


class _Lease:
    """One claim to a lease."""

    def __init__(self, store: ArtifactStore, folder: str, pace: Pace) -> None:
        self.store, self.folder, self.pace = store, folder, pace
        self.owner = uuid.uuid4().hex
        self.name = ""
        self._seen: tuple[Holder | None, float] = (None, 0.0)
        self._stop = threading.Event()

    @contextmanager
    def held(self, say: Callable[[str], None]) -> Generator[None]:
        """Wait for the lease, keep it alive, and release it."""
        said = False
        while not self._take():
            if not said:
                say(f"  waiting for another machine that holds {self.folder}")
                said = True
            time.sleep(self.pace.poll)
        heart = threading.Thread(target=self._beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            self._stop.set()
            heart.join()
            self._write(done=True)

    def _take(self) -> bool:
        holder = last_holder(self.store, self.folder)
        if holder is not None and not self._is_free(holder):
            return False
        number = 1 if holder is None else holder.number + 1
        self.name = f"{self.folder}/{number:08d}.json"
        if not self.store.create(self.name, self._record(done=False)):
            return False
        if holder is not None:
            with suppress(StorageError):  # only the last one counts; gc removes leftovers
                self.store.files.remove(f"{self.folder}/{holder.number:08d}.json")
        return True

    def _is_free(self, holder: Holder) -> bool:
        if holder.is_done or holder.age > self.pace.abandoned:
            return True
        seen, since = self._seen
        if holder != seen:
            self._seen = (holder, time.monotonic())
            return False
        return time.monotonic() - since > self.pace.stale

    def _beat(self) -> None:
        while not self._stop.wait(self.pace.beat):
            self._write(done=False)

    def _write(self, *, done: bool) -> None:
        # A short outage of the store costs a beat; a long one costs the lease.
        with suppress(StorageError):
            self.store.write(self.name, self._record(done=done))

    def _record(self, *, done: bool) -> bytes:
        return json.dumps({"owner": self.owner, "beat": time.time(), "done": done}).encode()


def last_holder(store: ArtifactStore, folder: str) -> Holder | None:
    """Return the current or last holder of the lease in a folder, None if there was none."""
    names = [name for name in store.list(folder) if NUMBERED.fullmatch(Path(name).name)]
    if not names:
        return None
    data = store.read(names[-1])
    return Holder(int(Path(names[-1]).stem), data or b"")
