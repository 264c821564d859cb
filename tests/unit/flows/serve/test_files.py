"""Uploads are kept as long and as many as allowed; none is dropped for a new one."""

import time

import pytest

from flows.serve.errors import RequestError
from flows.serve.files import Files
from flows.serve.limits import ServeLimits

LIMITS = ServeLimits(image_bytes=40, files=3, files_bytes=100, file_seconds=3600)


def test_an_upload_is_kept_until_it_is_deleted() -> None:
    files = Files(LIMITS)
    file = files.add("a.png", b"image", "vision")
    assert files.get(file.id).data == b"image"
    assert [each.id for each in files.listed()] == [file.id]
    files.remove(file.id)
    with pytest.raises(RequestError, match="no such file"):
        files.get(file.id)
    assert files.listed() == []


def test_an_upload_goes_after_its_time() -> None:
    files = Files(ServeLimits(file_seconds=1))
    file = files.add("a.png", b"image", "vision")
    told = files.file_object(file)
    assert told["expires_at"] == told["created_at"] + 1
    time.sleep(1.1)
    assert files.listed() == []
    with pytest.raises(RequestError, match="upload it again"):
        files.get(file.id)


@pytest.mark.parametrize(
    ("size", "purpose", "words"),
    [(41, "vision", "at most"), (0, "vision", "empty"), (1, "fine-tune", "vision or user_data")],
)
def test_other_uploads_are_refused(size: int, purpose: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Files(LIMITS).check(size, purpose)


@pytest.mark.parametrize(("size", "most"), [(1, 3), (40, 2)])
def test_more_than_there_is_room_for_are_refused(size: int, most: int) -> None:
    files = Files(LIMITS)
    kept = [files.add("a.png", b"x" * size, "vision") for _ in range(most)]
    with pytest.raises(RequestError, match="too many files") as refused:
        files.check(size, "vision")
    assert refused.value.status == 429
    with pytest.raises(RequestError, match="too many files"):
        files.add("a.png", b"x" * size, "vision")
    assert files.listed() == kept
    files.remove(kept[0].id)
    files.check(size, "vision")
