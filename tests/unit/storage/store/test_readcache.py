"""The read cache: bounded, shared between processes, and never a wrong byte out of it."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest
from storage.store.stamps import Stamps
from tests.support.store_fixtures import add, again, payload

SIZE = 1000


@pytest.fixture
def remote(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"memory://{tmp_path.name}", tmp_path / "cache", 2**30)


def artifacts(store: ArtifactStore, folder: Path, count: int) -> list[Manifest]:
    return [
        add(store, folder, {"a": bytes([n]) * SIZE, "b/c": b"c" * n}, payload(code={"n": str(n)}))
        for n in range(1, count + 1)
    ]


def held(cache: Path) -> set[str]:
    return {path.parent.name for path in (cache / "files").glob("*/a")}


def keys(made: list[Manifest]) -> list[str]:
    return [manifest.digest[:32] for manifest in made]


def read(store: ArtifactStore, manifest: Manifest) -> bytes:
    return store.artifact(manifest).path("a").read_bytes()


def same(store: ArtifactStore, cache: Path, limit: int = 2**30) -> ArtifactStore:
    return ArtifactStore(store.uri, cache, limit)


def test_a_second_read_does_not_need_the_store(remote: ArtifactStore, tmp_path: Path) -> None:
    (made,) = artifacts(remote, tmp_path, 1)
    assert read(remote, made) == b"\x01" * SIZE
    remote.files.remove(made.folder)
    assert read(same(remote, tmp_path / "cache"), made) == b"\x01" * SIZE


def test_a_copy_that_was_altered_here_is_fetched_again(
    remote: ArtifactStore, tmp_path: Path
) -> None:
    (made,) = artifacts(remote, tmp_path, 1)
    path = remote.artifact(made).path("a")
    path.write_bytes(b"x" * SIZE)
    assert read(same(remote, tmp_path / "cache"), made) == b"\x01" * SIZE
    path.write_bytes(b"short")
    assert read(remote, made) == b"\x01" * SIZE
    path.unlink()
    assert read(remote, made) == b"\x01" * SIZE


def test_lost_stamps_cost_a_hash_and_nothing_else(remote: ArtifactStore, tmp_path: Path) -> None:
    (made,) = artifacts(remote, tmp_path, 1)
    read(remote, made)
    for stamp in (tmp_path / "cache" / "stamps").iterdir():
        stamp.write_text('{"a": "torn')
    remote.files.remove(made.folder)
    assert read(same(remote, tmp_path / "cache"), made) == b"\x01" * SIZE


def test_what_was_used_longest_ago_goes_first(remote: ArtifactStore, tmp_path: Path) -> None:
    made = artifacts(remote, tmp_path, 4)
    cache = tmp_path / "small"
    for number, manifest in enumerate(made[:3]):
        read(same(remote, cache, 3 * SIZE + 100), manifest)
        lock = cache / "files" / f"{manifest.digest[:32]}.lock"
        os.utime(lock, (1000 + number, 1000 + number))
    read(same(remote, cache, 3 * SIZE + 100), made[0])  # now the youngest
    read(same(remote, cache, 3 * SIZE + 100), made[3])
    assert held(cache) == {keys(made)[n] for n in (0, 2, 3)}
    assert Stamps(cache / "stamps").keys() == {keys(made)[n] for n in (0, 2, 3)}
    assert not list(cache.rglob("*.old"))


def test_what_is_in_use_stays_even_above_the_limit(remote: ArtifactStore, tmp_path: Path) -> None:
    made = artifacts(remote, tmp_path, 3)
    cache = tmp_path / "small"
    first = same(remote, cache, SIZE)
    read(first, made[0])
    second = same(remote, cache, SIZE)
    read(second, made[1])
    read(second, made[2])
    assert held(cache) == set(keys(made))  # each is held by a store that still lives
    del first
    third = same(remote, cache, SIZE)
    read(third, made[2])
    assert held(cache) == set(keys(made)[1:])


def test_what_another_process_reads_stays_until_it_is_killed(
    remote: ArtifactStore, tmp_path: Path
) -> None:
    made = artifacts(remote, tmp_path, 2)
    cache = tmp_path / "small"
    read(same(remote, cache, SIZE), made[0])
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_SH);"
        "print('held', flush=True); sys.stdin.read()"
    )
    lock = cache / "files" / f"{keys(made)[0]}.lock"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        read(same(remote, cache, SIZE), made[1])
        assert held(cache) == set(keys(made))
        other.kill()
    read(same(remote, cache, SIZE), made[1])
    assert held(cache) == {keys(made)[1]}


def test_many_readers_and_evictions_at_once_never_serve_a_wrong_byte(
    remote: ArtifactStore, tmp_path: Path
) -> None:
    made = artifacts(remote, tmp_path, 4)
    cache = tmp_path / "small"
    failures: list[object] = []

    def work(seed: int) -> None:
        for turn in range(12):
            number = (seed * 3 + turn * 5) % 4
            try:
                found = read(same(remote, cache, 2 * SIZE), made[number])
            except Exception as error:
                failures.append(error)
            else:
                if found != bytes([number + 1]) * SIZE:
                    failures.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_who_locks_what_was_just_evicted_starts_over(remote: ArtifactStore, tmp_path: Path) -> None:
    (made,) = artifacts(remote, tmp_path, 1)
    cache = tmp_path / "cache"
    lock = cache / "files" / f"{keys([made])[0]}.lock"
    lock.parent.mkdir(parents=True)
    found: list[bytes] = []
    with lock.open("ab") as evictor:
        fcntl.flock(evictor, fcntl.LOCK_EX)
        waiter = threading.Thread(target=lambda: found.append(read(same(remote, cache), made)))
        waiter.start()
        time.sleep(0.2)
        assert not found
        lock.unlink()
    waiter.join()
    assert found == [b"\x01" * SIZE]
    assert lock.exists()


def test_an_eviction_that_comes_second_takes_nothing(
    remote: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifacts(remote, tmp_path, 2)
    cache = tmp_path / "small"
    read(same(remote, cache, SIZE), made[0])
    real = fcntl.flock

    def slow(handle: Any, how: int) -> None:
        if how & fcntl.LOCK_EX:  # another process evicts it and a third one fetches it anew
            lock = cache / "files" / f"{keys(made)[0]}.lock"
            lock.unlink()
            lock.touch()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    read(same(remote, cache, SIZE), made[1])
    assert held(cache) == set(keys(made))


def test_a_cache_that_cannot_be_written_is_one_clear_line(
    remote: ArtifactStore, tmp_path: Path
) -> None:
    (made,) = artifacts(remote, tmp_path, 1)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot use .*Not a directory"):
        read(same(remote, tmp_path / "file"), made)


def test_a_remote_file_that_is_not_what_was_committed_is_marked(
    remote: ArtifactStore, tmp_path: Path
) -> None:
    (made,) = artifacts(remote, tmp_path, 1)
    remote.write(f"{made.folder}/a", b"\x02" * SIZE)
    with pytest.raises(StorageError, match=r"a was altered\n  → `phivision run` makes it again"):
        read(remote, made)
    assert not list((tmp_path / "cache" / "files").rglob("a"))
    assert again(remote, tmp_path / "x").damage(made) == "a"
