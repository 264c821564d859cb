"""Locks that save work: flock on a local disk, a lease object with heartbeat elsewhere.

A flock dies with its process, kill -9 included. A lease on an object store names its owner and
is refreshed; one that was not refreshed for `STALE` seconds belongs to a dead process and is
taken over. Two owners at once only do the same work twice.
"""

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from storage.artifacts import ArtifactStore

BEAT = 10.0  # seconds between refreshes of a lease
STALE = 60.0  # seconds after which a lease that was not refreshed is void
POLL = 1.0


@contextlib.contextmanager
def lease(
    store: ArtifactStore, locks: Path, key: str, *, say: Callable[[str], None]
) -> Iterator[None]:
    """Hold the right to make one artifact; wait for another holder to finish or to die.

    Args:
        store: The store whose artifact is made.
        locks: Local folder of lock files, used for a local store.
        key: Names the artifact.
        say: Told once if another process holds the lock.
    """
    locks.mkdir(parents=True, exist_ok=True)
    with _flock(locks / f"{key}.lock", say):
        if store.local:
            yield
        else:
            with _remote(store, f"leases/{key}.json", say):
                yield


@contextlib.contextmanager
def _flock(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"  waiting for another process that holds {path.stem}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _remote(store: ArtifactStore, name: str, say: Callable[[str], None]) -> Iterator[None]:
    owner = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
    told = False
    while not _take(store, name, owner):
        if not told:
            say(f"  waiting for another machine that holds {name}")
            told = True
        time.sleep(POLL)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(store, name, owner, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if _owner(store, name)[0] == owner:
            store.fs.rm_file(store.full(name))


def _take(store: ArtifactStore, name: str, owner: str) -> bool:
    holder, age = _owner(store, name)
    if holder and age < STALE:
        return False
    data = _record(owner)
    if holder:
        store.write(name, data)  # taking over from the dead; a race here costs work only
    else:
        # A lost acknowledgement also looks like "exists", so the owner is read back below.
        with contextlib.suppress(FileExistsError):
            store.fs.pipe_file(store.full(name), data, mode="create")
    return _owner(store, name)[0] == owner


def _owner(store: ArtifactStore, name: str) -> tuple[str, float]:
    data = store.read(name)
    if data is None:
        return "", 0.0
    record = json.loads(data)
    return record["owner"], time.time() - record["beat"]


def _record(owner: str) -> bytes:
    return json.dumps({"owner": owner, "beat": time.time()}).encode()


def _beat(store: ArtifactStore, name: str, owner: str, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        if _owner(store, name)[0] != owner:
            return
        store.write(name, _record(owner))
