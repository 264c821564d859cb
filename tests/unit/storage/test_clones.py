"""Copies that are not written twice: what is shared, what is sealed, what stays the owner's own."""

import fcntl
import os
from pathlib import Path

import pytest

from storage.clones import clone_file, clone_folder
from storage.errors import StorageError


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A large file, on a disk without reflinks."""

    def refuse(*_: object) -> None:
        raise OSError("this disk has no reflinks")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    path = tmp_path / "blob"
    path.write_bytes(b"weights")
    path.chmod(0o640)
    return path


def test_a_file_of_a_cache_is_linked_and_sealed(source: Path, tmp_path: Path) -> None:
    pointer = tmp_path / "pointer"
    pointer.symlink_to(source)
    target = tmp_path / "new" / "weights"
    assert clone_file(pointer, target, may_link=True) == "link"
    assert target.stat().st_ino == source.stat().st_ino
    assert source.stat().st_mode & 0o777 == 0o440
    assert clone_file(source, tmp_path / "third", may_link=True) == "link"
    source.unlink()  # as a cache that is cleared
    assert target.read_bytes() == b"weights"


def test_a_file_that_its_owner_may_edit_is_copied(source: Path, tmp_path: Path) -> None:
    assert clone_file(source, tmp_path / "mine", may_link=False) == "copy"
    assert source.stat().st_mode & 0o777 == 0o640
    source.write_bytes(b"trained")
    assert (tmp_path / "mine").read_bytes() == b"weights"


def test_a_file_of_another_user_is_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert clone_file(source, tmp_path / "mine", may_link=True) == "copy"
    assert source.stat().st_mode & 0o777 == 0o640


def test_where_links_are_refused_the_source_stays_as_it_was(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("protected_hardlinks")

    monkeypatch.setattr(os, "link", refuse)
    assert clone_file(source, tmp_path / "mine", may_link=True) == "copy"
    assert source.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "mine").read_bytes() == b"weights"


def test_a_reflink_is_taken_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the kernel does on btrfs and XFS, which a test cannot count on.
    monkeypatch.setattr(
        fcntl, "ioctl", lambda target, _, fd: os.write(target.fileno(), os.read(fd, 100))
    )
    assert clone_file(source, tmp_path / "mine", may_link=True) == "reflink"
    assert (tmp_path / "mine").read_bytes() == b"weights"
    assert source.stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr("sys.platform", "darwin")
    assert clone_file(source, tmp_path / "elsewhere", may_link=False) == "copy"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nope"):
        clone_file(tmp_path / "nope", tmp_path / "mine", may_link=True)


def test_a_bundle_has_its_own_copies_of_the_models(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "part").mkdir(parents=True)
    (source / "part/weights").write_bytes(b"weights")
    (source / "config.json").write_text("{}")
    clone_folder(source, tmp_path / "out")
    (source / "part/weights").write_bytes(b"spoilt")
    assert (tmp_path / "out/part/weights").read_bytes() == b"weights"
    assert (tmp_path / "out/config.json").read_text() == "{}"
