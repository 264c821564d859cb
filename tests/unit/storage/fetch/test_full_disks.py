"""A disk that is full or fails while something arrives: what is told, and what is kept."""

import errno
import io
import os
import resource
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from storage.archives.archives import open_archive
from storage.errors import StorageError
from storage.fetch.remote_zip import RemoteZip
from storage.fetch.subset import fetch_files, fetch_members
from tests.support.fault_server import FaultServer
from tests.unit.storage.archives.test_archives import FILES as PACKED
from tests.unit.storage.archives.test_archives import pack
from tests.unit.storage.fetch.test_subset import (
    CHOSEN,
    FILES,
    LIMITS,
    QUICK,
    content,
    packed,
    wanted,
)
from tests.unit.storage.fetch.test_transfer import BODY, fetch, names


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as started:
        yield started


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failing(code: int) -> Any:
    """Return a call of the system that fails with an error of that number."""

    def fail(*arguments: object, **options: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


# -- one file ---------------------------------------------------------------------------------


def test_a_download_that_filled_the_disk_goes_on_where_there_is_room(
    server: FaultServer, tmp_path: Path
) -> None:
    url = server.serve("/a", BODY)
    with (
        room_for(1_000_000),
        pytest.raises(StorageError, match=rf"not enough disk space in {tmp_path} for a: "),
    ):
        fetch(url, tmp_path / "a")
    assert "a" not in names(tmp_path)
    fetch(url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.starts("/a")[1] > 0


def test_a_record_that_has_no_room_is_told_with_the_bytes_to_come(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(StorageError, match=f"for a: {len(BODY)} more bytes are needed"):
        fetch(server.serve("/a", BODY), tmp_path / "a")
    assert names(tmp_path) == []


def test_a_part_that_cannot_be_opened_is_told(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "a.part").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*/a: Is a directory"):
        fetch(server.serve("/a", BODY), tmp_path / "a")


def test_a_folder_that_takes_the_targets_name_meanwhile_stays(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, sync = server.serve("/a", BODY), os.fsync

    def late(handle: int) -> None:
        (tmp_path / "a").mkdir(exist_ok=True)
        sync(handle)

    monkeypatch.setattr(os, "fsync", late)
    with pytest.raises(StorageError, match=r"cannot write .*/a: Is a directory"):
        fetch(url, tmp_path / "a")
    assert (tmp_path / "a").is_dir()


# -- many files -------------------------------------------------------------------------------


def test_members_without_room_are_not_begun(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    needed = sum(map(len, wanted().values()))
    with (
        RemoteZip(server.serve("/a.zip", packed(FILES)), LIMITS, QUICK) as archive,
        pytest.raises(
            StorageError, match=f"{needed} more bytes are needed, 10 are free\n.*run again"
        ),
    ):
        fetch_members(archive, CHOSEN, tmp_path / "a", advance=lambda _: None, patience=QUICK)
    assert len(server.requests) == 2  # the probe and the directory


def by_address(server: FaultServer, target: Path) -> dict[str, str]:
    urls = {name: server.serve(f"/{name}", FILES[name]) for name in CHOSEN}
    return fetch_files(urls, target, largest=40_000, advance=lambda _: None, patience=QUICK)


def test_files_that_came_before_the_disk_was_full_stay(server: FaultServer, tmp_path: Path) -> None:
    with (
        room_for(200_000),
        pytest.raises(StorageError, match=rf"not enough disk space in {tmp_path} for a: "),
    ):
        by_address(server, tmp_path / "a")
    server.requests.clear()
    assert by_address(server, tmp_path / "a") == {}
    assert content(tmp_path / "a") == wanted()
    assert len(server.requests) == len(CHOSEN) - 6  # of 31,744 bytes each


def test_a_disk_that_fails_names_the_tar(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(StorageError, match=r"cannot write .*/a: Input/output error"):
        by_address(server, tmp_path / "a")
    assert names(tmp_path) == ["a.part"]


# -- unpacking --------------------------------------------------------------------------------


def test_no_room_to_unpack_leaves_nothing(tmp_path: Path) -> None:
    path = pack(tmp_path, "tar.gz", {"a": os.urandom(3_000_000)})
    size = path.stat().st_size
    with (
        room_for(1_000_000),
        pytest.raises(StorageError, match=rf"to unpack set\.tar\.gz, of {size} bytes and more"),
    ):
        open_archive(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fails_while_unpacking_is_not_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.BytesIO):
        write = failing(errno.EIO)

    path = pack(tmp_path, "tar.gz", PACKED)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Broken())  # noqa: A006
    with pytest.raises(StorageError, match=r"set\.tar\.gz .*Input/output error"):
        open_archive(path)


def test_a_folder_that_may_only_be_read_is_unpacked_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, because root may write everywhere."""
    opened, asked = tempfile.TemporaryFile, []

    def closed_to_writing(dir: Path | None = None) -> Any:  # noqa: A002
        asked.append(dir)
        return failing(errno.EROFS)() if dir == tmp_path else opened(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", closed_to_writing)
    with open_archive(pack(tmp_path, "tar.gz", PACKED)) as archive:
        assert {name: archive.read(name) for name in archive.names()} == PACKED
    assert asked == [tmp_path, None]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pack(tmp_path, "folder", PACKED)
    monkeypatch.setattr(os, "scandir", failing(errno.EIO))
    with pytest.raises(StorageError, match=r"set\.folder is damaged .*Input/output error"):
        open_archive(root)
