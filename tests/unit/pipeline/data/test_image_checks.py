"""Images checked by other processes: the same files, whatever those saw or when they died."""

import contextlib
import hashlib
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import image_checks
from pipeline.data import images as stage
from pipeline.engine.stage import FanOut, StageContext
from pipeline.settings import Settings
from storage.errors import StorageError
from tests.support.fan_outs import Backwards
from tests.unit.pipeline.data.test_images import (
    TRAIN,
    Recorder,
    coco,
    images_of,
    jpeg,
    lay_out,
    pack,
    part,
    record,
)

Files = dict[str, str]


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stage, "_AT_ONCE", 8)
    yield
    image_checks._OPENED.close()


def dataset(root: Path, kind: str = "folder") -> Path:
    """Write 40 images: some broken, missing, equal or with unsafe names."""
    train = coco(list(range(1, 36)))
    train["images"] += [record(50, "../outside.jpg"), record(51, "missing.jpg")]
    images = images_of([*range(1, 36)], [99])
    images[f"{TRAIN}/{7:012d}.jpg"] = jpeg(7)[:300]
    images[f"{TRAIN}/{9:012d}.jpg"] = b"<html>404</html>"
    images[f"{TRAIN}/{30:012d}.jpg"] = images[f"{TRAIN}/{3:012d}.jpg"]
    lay_out(root, train, coco([99]), images)
    if kind != "folder":
        pack(root, kind)
    return root


def made(root: Path, work: Path, fan_out: FanOut | None = None) -> tuple[Files, list[str]]:
    """Run the stage; return digests of its files, and what it said."""
    out, scratch = work / "out", work / "scratch"
    shutil.rmtree(out, ignore_errors=True)
    for folder in (out, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder()
    context = StageContext({}, out, scratch, Settings(), recorder, fan_out=fan_out)
    stage.images(context, part(root, max_bad_share=1.0), 0)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}
    assert recorder.counted.pop("check images") == 38
    return files, [line for line in recorder.counted if "workers could not read" in line]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_spread_checks_give_the_same_files(tmp_path: Path, kind: str) -> None:
    root = dataset(tmp_path / "coco", kind)
    alone, _ = made(root, tmp_path / "alone")
    spread = Backwards()
    files, said = made(root, tmp_path / "spread", spread)
    assert files == alone
    assert (spread.done, said) == ([4, 3, 2, 1, 0], [])


def test_workers_decode_each_image_and_this_process_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: bytes, max_pixels: int) -> None:
        raise AssertionError("an image was decoded twice")

    monkeypatch.setattr(stage, "check", refuse)
    made(dataset(tmp_path / "coco"), tmp_path, Backwards())


def test_a_killed_run_checks_only_what_is_left(tmp_path: Path) -> None:
    root = dataset(tmp_path / "coco")
    alone, _ = made(root, tmp_path / "alone")

    def die(job: Any) -> None:
        if job.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(root, tmp_path / "spread", Backwards(die))
    (damaged,) = (tmp_path / "spread" / "scratch").glob("checks-000003.parquet")
    damaged.write_bytes(damaged.read_bytes()[:100])
    again = Backwards()
    files, _ = made(root, tmp_path / "spread", again)
    assert (files, again.done) == (alone, [3, 1, 0])


def test_an_image_that_changed_after_its_check_is_checked_again(tmp_path: Path) -> None:
    root = dataset(tmp_path / "coco")
    changing = root / TRAIN / f"{2:012d}.jpg"

    def change(job: Any) -> None:
        if job.number == 0:
            changing.write_bytes(jpeg(2)[:200])

    made(root, tmp_path / "spread", Backwards(change))
    changing.write_bytes(jpeg(77, (20, 30)))
    alone, _ = made(root, tmp_path / "alone")
    files, said = made(root, tmp_path / "spread", Backwards())
    assert files == alone
    assert said == ["  1 images decoded here: workers could not read them, or read other bytes"]


def test_images_that_workers_cannot_see_are_checked_here(tmp_path: Path) -> None:
    root, hidden = dataset(tmp_path / "coco"), tmp_path / "hidden"
    alone, _ = made(root, tmp_path / "alone")

    def spread(function: Callable[[Any], int], jobs: Sequence[Any]) -> Iterator[int]:
        (root / TRAIN).rename(hidden)
        numbers = [function(job) for job in jobs]
        hidden.rename(root / TRAIN)
        yield from numbers

    files, said = made(root, tmp_path / "spread", spread)
    assert files == alone
    assert len(said) == 1


def test_workers_may_have_another_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(tmp_path / "coco")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def spread(function: Callable[[Any], int], jobs: Sequence[Any]) -> Iterator[int]:
        with contextlib.chdir("elsewhere"):
            numbers = [function(job) for job in jobs]
        yield from numbers

    _, said = made(Path("coco"), Path(), spread)
    assert said == []


def test_the_latest_archives_stay_open_and_older_ones_are_closed(tmp_path: Path) -> None:
    places = [(tmp_path / f"{number}.zip",) for number in range(image_checks._KEPT_OPEN + 1)]
    for (path,) in places:
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("a.jpg", b"some")
    opened = image_checks._Opened()
    first, *others = [opened.archive(place, True, 100) for place in places]
    assert [opened.archive(place, True, 100) for place in places[1:]] == others
    with pytest.raises(StorageError, match="already closed"):
        first.read("a.jpg")
    assert opened.archive(places[0], True, 100).read("a.jpg") == b"some"
    opened.close()


def test_few_images_are_not_worth_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_AT_ONCE", 38)
    spread = Backwards()
    made(dataset(tmp_path / "coco"), tmp_path, spread)
    assert spread.done == []
