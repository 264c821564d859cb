"""Images that lie one by one in a bucket: the chosen ones come, and each is read once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.data.probes import probe_images
from pipeline.errors import PipelineError
from pipeline.recipe.data_sources import FolderImages
from pipeline.recipe.presets import preset
from storage.errors import StorageError
from tests.unit.pipeline.data.test_images import coco
from tests.unit.pipeline.data.test_sources import TESTED, TRAINED, rows, run, stored

SOURCE = FolderImages(root="memory://set")


class Bucket:
    """A dataset in `memory://`.

    Attributes:
        reads: Names of the files that were read.
        after: Reads that succeed before `failure` is raised once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MemoryFileSystem, "store", {})
        monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
        self.files = MemoryFileSystem()
        self.reads: list[str] = []
        self.after, self.failure = 0, None
        for split, files in (("train2017", TRAINED), ("val2017", TESTED)):
            for number, data in files.items():
                self.put(f"{split}/{number:012d}.jpg", data)
            self.put(f"annotations/captions_{split}.json", json.dumps(coco(list(files))).encode())
        read = MemoryFileSystem.cat_file

        def cat_file(files: MemoryFileSystem, path: str, **options: Any) -> bytes:
            if self.failure is not None and len(self.reads) >= self.after:
                failure, self.failure = self.failure, None
                raise failure
            self.reads.append(path.rpartition("/set/")[2])
            return read(files, path, **options)

        monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)

    def put(self, name: str, data: bytes) -> None:
        """Write one file."""
        self.files.pipe_file(f"/set/{name}", data)

    def list_more(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """List a file that is gone when it is read."""
        find = MemoryFileSystem.find
        ghost = {"name": f"/set/{name}", "size": 9, "type": "file"}

        def find_more(files: MemoryFileSystem, path: str, **options: Any) -> Any:
            found = find(files, path, **options)
            return found | {ghost["name"]: ghost} if ghost["name"].startswith(path) else found

        monkeypatch.setattr(MemoryFileSystem, "find", find_more)

    def images(self) -> list[str]:
        """Return the images that were read since the last look."""
        seen = sorted(name for name in self.reads if name.endswith(".jpg"))
        self.reads.clear()
        return seen


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    return Bucket(monkeypatch)


def names(out: Path) -> list[str]:
    return sorted(f"{row['origin']}/{row['file_name']}" for row in rows(out, "images"))


def test_a_larger_subset_reads_the_difference(bucket: Bucket, tmp_path: Path) -> None:
    _, small, recorder = run(SOURCE, tmp_path / "small", tmp_path / "machine", limit=12)
    few = bucket.images()
    assert few == names(small)
    assert len(few) == 12 + len(TESTED)
    moved = sum(row["bytes"] for row in rows(small, "images") if row["origin"] == "train2017")
    assert recorder.counted["fetch 12 files of train2017"] == moved
    _, large, _ = run(SOURCE, tmp_path / "large", tmp_path / "machine", limit=30)
    assert bucket.images() == sorted(set(names(large)) - set(few))
    assert stored(large) > stored(small)


def test_a_changed_image_is_seen_and_read(bucket: Bucket, tmp_path: Path) -> None:
    recipe = preset("coco").override({"images.source": SOURCE.model_dump()})
    before = probe_images(recipe)
    assert probe_images(recipe) == before
    run(SOURCE, tmp_path / "old", tmp_path / "machine", limit=None)
    bucket.put("train2017/000000000001.jpg", TRAINED[2])
    assert {part for part, state in probe_images(recipe).items() if state != before[part]} == {
        "train2017"
    }
    _, out, _ = run(SOURCE, tmp_path / "new", tmp_path / "machine", limit=None)
    assert stored(out) == {*TRAINED.values(), *TESTED.values()} - {TRAINED[1]}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError("the line is dead")])
def test_what_came_before_a_kill_or_a_failure_is_kept(
    bucket: Bucket, tmp_path: Path, failure: BaseException
) -> None:
    bucket.after, bucket.failure = 20, failure
    if isinstance(failure, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            run(SOURCE, tmp_path, limit=None)
        bucket.failure = None
    _, out, _ = run(SOURCE, tmp_path, limit=None)
    assert bucket.images() == names(out)
    assert stored(out) == {*TRAINED.values(), *TESTED.values()}


def test_images_that_cannot_be_had_are_counted(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("train2017/000000000001.jpg", bytes(30_000))
    bucket.files.rm("/set/train2017/000000000002.jpg")
    bucket.list_more("train2017/000000000002.jpg", monkeypatch)
    _, out, _ = run(SOURCE, tmp_path, limit=None, max_bytes=20_000, max_bad_share=0.5)
    told = {row["record"]: (row["reason"], row["detail"]) for row in rows(out, "drops")}
    assert told["1"] == ("file refused", "larger than 20000 bytes")
    assert told["2"][0] == "unreadable member"
    assert "memory://set/train2017/000000000002.jpg does not exist" in told["2"][1]
    assert len(names(out)) == len(TRAINED) + len(TESTED) - 2


def test_annotations_that_are_gone_are_named(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.list_more("annotations/captions_test.json", monkeypatch)
    with pytest.raises(StorageError, match=r"captions_test\.json does not exist"):
        run(SOURCE, tmp_path, limit=None)


def test_a_folder_without_annotations_is_named(bucket: Bucket, tmp_path: Path) -> None:
    bucket.files.rm("/set/annotations", recursive=True)
    bucket.put("annotations/readme.txt", b"none")
    with pytest.raises(PipelineError, match=r"memory://set/annotations has no \.json"):
        run(SOURCE, tmp_path, limit=None)
