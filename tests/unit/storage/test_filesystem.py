"""The local disk: writes are whole or not there at all, durable, and errors name the place."""

import errno
import hashlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.errors import StorageError
from storage.filesystem import (
    LocalFiles,
    copy_file,
    hash_file,
    local_error,
    make_folder,
    replace_file,
    sync_directory,
)
from storage.store.objects import ObjectFiles


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path / "root")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_write_replaces_and_leaves_nothing_beside(files: LocalFiles) -> None:
    files.write("a/b.json", b"1")
    files.write("a/b.json", b"22")
    assert files.read("a/b.json") == b"22"
    assert names(files.root) == ["a", "a/b.json"]
    assert files.read("a/c.json") is None


def test_an_exclusive_creation_keeps_what_is_there(files: LocalFiles) -> None:
    assert files.create("a/b.json", b"1")
    assert not files.create("a/b.json", b"2")
    assert files.read("a/b.json") == b"1"
    assert names(files.root) == ["a", "a/b.json"]


def test_of_many_creations_at_once_one_wins(files: LocalFiles) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        if files.create("x", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [files.read("x")] == [b"%d" % number for number in won]


def test_a_disk_without_links_still_creates_and_puts(
    files: LocalFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert files.create("a", b"1")
    assert not files.create("a", b"2")
    assert files.read("a") == b"1"
    (tmp_path / "source").write_bytes(b"x" * 100)
    files.put(tmp_path / "source", "deep/er/target")
    assert files.read("deep/er/target") == b"x" * 100
    assert names(files.root) == ["a", "deep", "deep/er", "deep/er/target"]


def test_put_shares_the_bytes_with_the_source(files: LocalFiles, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    files.put(tmp_path / "source", "t/u")
    assert files.path("t/u").samefile(tmp_path / "source")


def test_states_tell_a_changed_file(files: LocalFiles) -> None:
    files.write("f/a/b", b"12")
    before = files.states("f")
    assert before["a/b"].bytes == 2
    assert files.states("f") == before
    files.write("f/a/b", b"13")
    assert files.states("f") != before
    assert files.states("nothing") == {}


def test_a_folder_is_as_young_as_its_youngest_change(files: LocalFiles, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"x")
    os.utime(old, (1000, 1000))
    files.put(old, "f/old")
    assert files.path("f/old").stat().st_mtime == 1000
    assert files.modified("f") > 1e9  # it was linked in just now
    os.utime(files.path("f"), (2000, 2000))
    assert files.modified("f") == 2000
    assert files.modified("f/old") == 1000
    assert files.modified("nothing") == 0


def test_removing_takes_files_links_and_folders(files: LocalFiles, tmp_path: Path) -> None:
    files.write("f/a", b"1")
    files.write("g", b"1")
    files.path("link").symlink_to(tmp_path)
    for name in ("f", "g", "link", "nothing"):
        files.remove(name)
    assert names(files.root) == []
    assert tmp_path.is_dir()


def test_chunks_give_the_content(files: LocalFiles) -> None:
    data = os.urandom(5 * 2**20)
    files.write("a", data)
    pieces = list(files.chunks("a"))
    assert b"".join(pieces) == data
    assert len(pieces) == 2
    with pytest.raises(StorageError, match="cannot read"):
        list(files.chunks("b"))


def test_errors_name_the_file_and_a_remedy(files: LocalFiles) -> None:
    files.write("a", b"")
    for action in (
        lambda: files.read("a/b"),
        lambda: files.write("a/b", b""),
        lambda: files.create("a/b", b""),
        lambda: files.list("a"),
        lambda: files.remove("a/b"),
    ):
        with pytest.raises(StorageError, match=r"root/a.*Not a directory\n.*check that") as caught:
            action()
        assert str(files.root) in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_as_such(number: int) -> None:
    error = local_error("write", Path("/x/y"), OSError(number, os.strerror(number)))
    assert str(error).startswith("cannot write /x/y: no space left\n  → free some space")


def test_a_killed_write_leaves_the_old_content(tmp_path: Path) -> None:
    """The child is killed by its own limit in the middle of a write."""
    target = tmp_path / "manifest.json"
    replace_file(target, b"old")
    script = (
        "import resource, signal, sys; from pathlib import Path;"
        "from storage.filesystem import replace_file;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "replace_file(Path(sys.argv[1]), bytes(100_000))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert done.returncode < 0
    assert target.read_bytes() == b"old"


def test_no_room_leaves_the_old_content_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "root" / "manifest.json"
    files = LocalFiles(tmp_path / "root")
    files.write("manifest.json", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageError, match="no space left"):
            files.write("manifest.json", bytes(100_000))
        with pytest.raises(OSError, match="File too large"):
            copy_file(Path("/dev/zero"), tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["root", "root/manifest.json"]


def test_folders_are_made_with_their_parents(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_folder_that_cannot_be_synced_is_no_error() -> None:
    sync_directory(Path("/proc/self"))


def test_a_folder_that_fails_to_sync_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        sync_directory(tmp_path)


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 3_000_000)
    expected = hashlib.sha256(b"abc" * 3_000_000).hexdigest()
    assert hash_file(tmp_path / "a", hashlib.sha256()) == expected


# -- the same on fsspec, where the store's own suite does not look ------------------------------


def test_an_object_store_without_times_counts_as_young() -> None:
    files = ObjectFiles("memory://times")
    assert files.modified("nothing") > 1e9
    files.write("a/b", b"1")
    assert files.modified("a") > 1e9


def test_objects_come_in_pieces_and_missing_ones_are_named() -> None:
    files = ObjectFiles("memory://pieces")
    files.write("a", bytes(5 * 2**20))
    assert sum(len(piece) for piece in files.chunks("a")) == 5 * 2**20
    with pytest.raises(StorageError, match="no such bucket or object"):
        list(files.chunks("b"))
    files.remove("a")
    files.remove("a")
    assert files.list("") == []


class Vanishing(dict[str, object]):
    """Objects of `memory://`, whose names tell of one that another thread has just removed."""

    looks = 0

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        if self.looks:
            self.looks -= 1
            yield "/anywhere/folder/vanished"


def test_an_object_that_vanishes_meanwhile_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Vanishing()
    monkeypatch.setattr(MemoryFileSystem, "store", objects)
    files = ObjectFiles("memory://anywhere")
    files.write("folder/kept", b"1")
    objects.looks = 3
    assert files.list("folder") == ["folder/kept"]
    objects.looks = 1000
    with pytest.raises(StorageError, match="cannot list memory://anywhere/folder"):
        files.list("folder")


def test_what_another_one_created_and_removed_at_once_was_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The holder of a lease may be gone between our refused write and our look at what is there."""
    files = ObjectFiles("memory://gone")

    def taken(*_: object, **__: object) -> None:
        raise FileExistsError

    monkeypatch.setattr(files._fs, "pipe_file", taken)
    assert files.create("leases/3.json", b"mine") is False


def test_a_listing_of_one_object_by_its_name_alone_is_understood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Azure's filesystem gives it, which the store's suite meets where Azurite is installed."""
    files = ObjectFiles("memory://alone")
    files.write("a", b"12")
    monkeypatch.setattr(files._fs, "find", lambda *_, **__: ["/alone/a"])
    [state] = files.states("a").values()
    assert state.bytes == 2


def test_a_place_of_no_cloud_that_may_not_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    files = ObjectFiles("memory://closed")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(files._fs, "cat_file", refuse)
    with pytest.raises(
        StorageError, match=r"permission denied\n  → check the credentials or rights"
    ):
        files.read("a")
