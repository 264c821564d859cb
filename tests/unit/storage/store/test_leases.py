"""Leases: one holder at a time, and a dead one keeps nobody waiting for ever."""

import errno
import fcntl
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.store.leases import Holder, Pace, last_holder, lease, presence
from storage.store.survey import is_busy
from tests.support.store_fixtures import again

FAST = Pace(beat=0.05, stale=0.4, abandoned=900.0, poll=0.02)


def quiet(_: str) -> None:
    """Say nothing."""


def hold(
    store: ArtifactStore, folder: Path, say: Callable[[str], None] = quiet
) -> AbstractContextManager[bool]:
    return lease(store, folder / "locks", "stage-1", say=say, pace=FAST)


def test_one_after_the_other(store: ArtifactStore, tmp_path: Path) -> None:
    """Each thread is a machine of its own: no lock file is shared."""
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        where = tmp_path if store.local else tmp_path / str(number)
        with hold(again(store, tmp_path / f"c{number}"), where):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.1)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_who_waits_is_told_once(store: ArtifactStore, tmp_path: Path) -> None:
    told: list[str] = []
    where = tmp_path if store.local else tmp_path / "other"
    with hold(store, tmp_path):
        waiter = threading.Thread(target=lambda: _enter(hold(store, where, told.append)))
        waiter.start()
        time.sleep(0.2)
    waiter.join()
    assert len(told) == 1
    assert "waiting for another" in told[0]


def _enter(context: AbstractContextManager[bool]) -> None:
    with context:
        pass


def test_a_lease_is_free_again_after_an_error(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), hold(store, tmp_path):
        raise RuntimeError
    told: list[str] = []
    _enter(hold(store, tmp_path, told.append))
    assert told == []  # nobody was waited for


def test_locks_leave_no_files_behind(local: ArtifactStore, tmp_path: Path) -> None:
    _enter(hold(local, tmp_path))
    assert list((tmp_path / "locks").iterdir()) == []


def test_the_lock_of_a_killed_process_is_free_at_once(local: ArtifactStore, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; "
        "from storage.store.artifacts import ArtifactStore;"
        "from storage.store.leases import lease; root = Path(sys.argv[1]);"
        "store = ArtifactStore(str(root / 'store'), root / 'cache');"
        "context = lease(store, root / 'locks', 'stage-1', say=print); context.__enter__();"
        "print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        told: list[str] = []
        waiter = threading.Thread(target=lambda: _enter(hold(local, tmp_path, told.append)))
        waiter.start()
        time.sleep(0.2)
        assert waiter.is_alive()
        holder.send_signal(signal.SIGKILL)
        waiter.join(timeout=5)
        assert not waiter.is_alive()
    assert len(told) == 1


def remote(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"memory://{tmp_path.name}", tmp_path / "cache")


def leave(store: ArtifactStore, number: int, **fields: object) -> None:
    record = {"owner": "dead", "beat": time.time(), "done": False} | fields
    store.write(f"leases/stage-1/{number:08d}.json", json.dumps(record).encode())


def waited(store: ArtifactStore, folder: Path) -> float:
    start = time.monotonic()
    _enter(hold(store, folder))
    return time.monotonic() - start


def test_a_dead_machine_is_waited_for_as_long_as_it_could_live(tmp_path: Path) -> None:
    store = remote(tmp_path)
    leave(store, 3)
    assert FAST.stale < waited(store, tmp_path) < FAST.stale + 2
    assert store.list("leases/stage-1") == ["leases/stage-1/00000004.json"]


@pytest.mark.parametrize("skew", [-3600.0, -30.0, 30.0, 3600.0])
def test_a_wrong_clock_of_the_dead_machine_does_not_lengthen_the_wait(
    tmp_path: Path, skew: float
) -> None:
    store = remote(tmp_path)
    leave(store, 1, beat=time.time() + skew)
    assert waited(store, tmp_path) < FAST.stale + 2


def test_what_was_abandoned_or_given_back_or_torn_is_not_waited_for(tmp_path: Path) -> None:
    store = remote(tmp_path)
    leave(store, 1, beat=time.time() - 1000)
    assert waited(store, tmp_path) < 0.3
    leave(store, 7, done=True)
    assert waited(store, tmp_path) < 0.3
    store.write("leases/stage-1/00000009.json", b"{torn")
    assert waited(store, tmp_path) < 0.3
    assert store.list("leases/stage-1")[-1] == "leases/stage-1/00000010.json"


def test_a_holder_that_works_for_long_keeps_its_lease(tmp_path: Path) -> None:
    store = remote(tmp_path)
    order: list[str] = []

    def second() -> None:
        with hold(again(store, tmp_path / "c"), tmp_path / "other"):
            order.append("second")

    with hold(store, tmp_path):
        waiter = threading.Thread(target=second)
        waiter.start()
        time.sleep(3 * FAST.stale)
        order.append("first")
    waiter.join()
    assert order == ["first", "second"]


def test_of_many_that_wait_for_a_dead_one_each_gets_its_turn(tmp_path: Path) -> None:
    store = remote(tmp_path)
    leave(store, 1)
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with hold(store, tmp_path / str(number)):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_a_store_that_fails_for_a_moment_does_not_end_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = remote(tmp_path)
    with hold(store, tmp_path):
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise StorageError("away for a moment")

            patch.setattr(store.files, "write", fail)
            time.sleep(3 * FAST.beat)
        time.sleep(3 * FAST.beat)
        holder = last_holder(store, "leases/stage-1")
        assert holder is not None
        assert holder.age < 3 * FAST.beat
        assert not holder.is_done
    holder = last_holder(store, "leases/stage-1")
    assert holder is not None
    assert holder.is_done


def test_a_lease_that_vanished_meanwhile_counts_as_free(tmp_path: Path) -> None:
    assert Holder(1, b"").is_done
    assert last_holder(remote(tmp_path), "leases/none") is None


def test_a_folder_that_cannot_be_locked_is_one_clear_line(
    local: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "locks").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot lock"):
        _enter(hold(local, tmp_path))


def test_a_disk_without_locks_is_told_and_used(
    local: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    told: list[str] = []
    with hold(local, tmp_path, told.append) as exclusive:
        assert not exclusive
    assert ["without locks" in line for line in told] == [True]
    with presence(local, tmp_path / "locks"):
        assert is_busy(local, tmp_path)  # a lease in the store tells
    assert not is_busy(local, tmp_path)
