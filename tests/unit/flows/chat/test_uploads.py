"""The folder of uploads, as visitors leave it."""

import time
from pathlib import Path

import pytest

from flows.chat.limits import Limits
from flows.chat.uploads import Uploads

LIMITS = Limits(image_bytes=10_000, folder_bytes=50_000, keep_seconds=100)


def put(path: Path, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_everything_leaves_by_age_but_what_was_there_at_the_start(tmp_path: Path) -> None:
    example = put(tmp_path / "examples" / "0.png")
    uploads = Uploads(tmp_path, LIMITS)
    with uploads.swept():
        sent = put(tmp_path / "hash" / "image.png")
        torn = put(tmp_path / "tmp_unfinished")  # its sender left in the middle
        uploads.sweep(time.time() + 99)
        assert sent.is_file()
        assert torn.is_file()
        uploads.sweep(time.time() + 101)
        uploads.sweep(time.time() + 202)  # a folder is newer than the file that left it
    assert [path.name for path in tmp_path.iterdir()] == ["examples"]
    assert example.is_file()


def test_the_folder_is_full_by_files_by_their_number_and_by_what_is_on_its_way(
    tmp_path: Path,
) -> None:
    uploads = Uploads(tmp_path, LIMITS)
    put(tmp_path / "large", 40_000)
    assert not uploads.is_full
    with uploads.arriving(9_000):
        assert not uploads.is_full
        with uploads.arriving(9_000):
            assert uploads.is_full
    for number in range(10):
        put(tmp_path / f"empty{number}", 0)
    assert uploads.is_full


@pytest.mark.parametrize("gone", [True, False])
def test_a_folder_that_cannot_be_read_is_empty(tmp_path: Path, gone: bool) -> None:
    folder = tmp_path / "gone" if gone else put(tmp_path / "file")
    assert Uploads(folder, LIMITS).used() == 0
