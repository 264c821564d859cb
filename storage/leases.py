"""Locks that save work: flock on a local disk, lease objects with heartbeat elsewhere.

A flock dies with its process, kill -9 included. On an object store the right to make an artifact
is a row of numbered objects, each made by exclusive creation, of which the last one counts: so
of many that wait for a dead holder exactly one follows. A holder is dead when its object has not
changed for `Pace.stale` seconds on the waiter's own clock; clocks of different machines are
compared only to recognise one that was left behind long ago. Two holders at once would only do
the same work twice.
"""

import errno
import json
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from storage.artifacts import ArtifactStore
from storage.errors import StorageError
from storage.filesystem import local_error

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP})


@dataclass(frozen=True)
class Pace:
    """How fast leases live; all in seconds.

    Attributes:
        beat: Between two refreshes of a lease.
        stale: Without a refresh, as seen by a waiter, until the holder counts as dead.
        abandoned: Age by the clock at which nobody waits any more.
        poll: Between two looks of a waiter.
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
) -> Generator[None]:
    """Hold the right to make one artifact; wait for another holder to finish or to die.

    Args:
        store: The store whose artifact is made.
        locks: Local folder of lock files, for the processes of this machine.
        key: Names the artifact.
        say: Told once if another process holds the lock.
        pace: Speed of leases on object stores.

    Raises:
        StorageError: The folder or the store cannot be written.
    """
    with _flock(locks / f"{key}.lock", say):
        if store.local:
            yield
        else:
            with _Lease(store, f"leases/{key}", pace or Pace()).held(say):
                yield


@contextmanager
def _flock(path: Path, say: Callable[[str], None]) -> Generator[None]:
    from filelock import FileLock, Timeout  # imports asyncio, which `plan` has no time for

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"  waiting for another process that holds {path.stem}")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise local_error("lock", path, error) from error
        say(f"  {path.parent} is on a disk without locks: work may be done twice")
    try:
        yield
    finally:
        # Removed while still held: filelock notices a lock file without a name and starts over.
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
        """Whether it was given back."""
        return bool(self._field("done", True))

    @property
    def age(self) -> float:
        """Seconds since the last refresh, by the clocks of two machines."""
        return time.time() - float(self._field("beat", 0.0))

    def _field(self, name: str, default: float) -> float:
        # What nobody can read was written by nobody who still holds anything.
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
        """Wait for the lease, keep it alive, and give it back."""
        told = False
        while not self._take():
            if not told:
                say(f"  waiting for another machine that holds {self.folder}")
                told = True
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
        if not self.store.files.create(self.name, self._record(done=False)):
            return False
        if holder is not None:
            with suppress(StorageError):  # only the last one counts; gc finds the rest
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
        # A store that is away for a moment costs a beat; away for long, it costs the lease.
        with suppress(StorageError):
            self.store.write(self.name, self._record(done=done))

    def _record(self, *, done: bool) -> bytes:
        return json.dumps({"owner": self.owner, "beat": time.time(), "done": done}).encode()


def last_holder(store: ArtifactStore, folder: str) -> Holder | None:
    """Return who holds the lease in a folder, or held it last."""
    names = [name for name in store.list(folder) if name.endswith(".json")]
    if not names:
        return None
    data = store.read(names[-1])
    return Holder(int(Path(names[-1]).stem), data or b"")
