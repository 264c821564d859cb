"""The `images` stage on small folders, zips and tars, whole and broken."""

import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.annotations import read_coco
from pipeline.data.images import images, split_of
from pipeline.engine.stage import StageContext
from pipeline.errors import PipelineError
from pipeline.recipe.data_sources import FolderImages
from pipeline.recipe.parts import ImagesPart
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.tables import read_table

Json = Any
TRAIN, VAL = "train2017", "val2017"


class Recorder:
    """Keeps what a stage says and counts."""

    def __init__(self) -> None:
        self.counted: dict[str, int] = {}

    def say(self, text: str) -> None:
        self.counted.setdefault(text, 0)

    @contextmanager
    def track(self, label: str, total: int | None, done: int = 0) -> Generator[Any]:
        self.counted[label] = done

        def tick(amount: int = 1, note: str = "") -> None:
            del note
            self.counted[label] += amount

        yield tick


def jpeg(number: int, size: tuple[int, int] = (12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, 90, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def record(number: int, file_name: str | None = None) -> dict[str, Json]:
    return {"id": number, "file_name": file_name or f"{number:012d}.jpg", "coco_url": "http://x/y"}


def coco(numbers: list[int], **more: Json) -> dict[str, Json]:
    captions = [{"id": 10 * n, "image_id": n, "caption": f"image {n}"} for n in numbers]
    return {"images": [record(n) for n in numbers], "annotations": captions, **more}


def lay_out(
    root: Path,
    train: Json,
    val: Json,
    images: Mapping[str, bytes] | None = None,
    instances: Json = None,
) -> Path:
    """Write COCO's layout as folders; JSON given as bytes is written as it is."""
    for folder in (TRAIN, VAL, "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    files = {f"captions_{TRAIN}.json": train, f"captions_{VAL}.json": val}
    if instances is not None:
        files[f"instances_{TRAIN}.json"] = instances
    for name, value in files.items():
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        (root / "annotations" / name).write_bytes(data)
    for name, data in (images or {}).items():
        (root / name).write_bytes(data)
    return root


def images_of(train: list[int], val: list[int]) -> dict[str, bytes]:
    named = [*((TRAIN, n) for n in train), *((VAL, n) for n in val)]
    return {f"{folder}/{number:012d}.jpg": jpeg(number) for folder, number in named}


def part(root: Path, **changes: Json) -> ImagesPart:
    source = FolderImages(root=str(root))
    return preset("demo").images.model_copy(update={"source": source, **changes})


def run(root: Path, work: Path, seed: int = 0, **changes: Json) -> tuple[dict[str, Json], Path]:
    """Run the stage and return its summary and the folder it wrote."""
    out, scratch = work / "out", work / "scratch"
    for folder in (out, scratch):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    context = StageContext({}, out, scratch, Settings(), Recorder())
    return dict(images(context, part(root, **changes), seed)), out


def table(out: Path, name: str) -> list[dict[str, Json]]:
    return read_table(out / f"{name}.parquet").to_pylist()


def reasons(out: Path) -> dict[str, str]:
    return {row["record"]: row["reason"] for row in table(out, "drops")}


# -- whole datasets ----------------------------------------------------------------------------


def test_a_folder_becomes_tables_and_the_images_own_bytes(tmp_path: Path) -> None:
    images = images_of([1, 2, 3], [4])
    root = lay_out(tmp_path / "coco", coco([1, 2, 3]), coco([4]), images)
    summary, out = run(root, tmp_path)
    assert summary == {"images": 4, "captions": 4, "objects": 0, "quarantined": 0}
    rows = table(out, "images")
    assert [row["image_id"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["split"] == "test"
    assert (rows[0]["width"], rows[0]["height"]) == (12, 8)
    files = pa.concat_tables(map(read_table, sorted(out.glob("files-*.parquet")))).to_pylist()
    assert {row["data"] for row in files} == set(images.values())
    assert {row["sha256"] for row in files} == {row["sha256"] for row in rows}


def pack(root: Path, kind: str) -> None:
    """Replace the three folders of a dataset by archives of one kind."""
    for name in (TRAIN, VAL, "annotations"):
        members = sorted((root / name).iterdir())
        if kind == "zip":
            with zipfile.ZipFile(root / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as packed:
                for path in members:
                    packed.write(path, f"{name}/{path.name}")
        else:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as packed:
                for member in members:
                    packed.add(member, f"{name}/{member.name}")
            data = buffer.getvalue()
            (root / f"{name}.{kind}").write_bytes(gzip.compress(data) if "gz" in kind else data)
        shutil.rmtree(root / name)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tgz"])
def test_archives_give_what_folders_give(tmp_path: Path, kind: str) -> None:
    images = images_of([1, 2], [3])
    folder = lay_out(tmp_path / "folder", coco([1, 2]), coco([3]), images)
    packed = lay_out(tmp_path / "packed", coco([1, 2]), coco([3]), images)
    pack(packed, kind)
    _, first = run(folder, tmp_path / "a")
    _, second = run(packed, tmp_path / "b")
    assert table(first, "images") == table(second, "images")
    assert table(first, "captions") == table(second, "captions")


def test_boxes_of_good_images_are_kept_with_their_category(tmp_path: Path) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2.5, 3, 4], "area": 12}
    instances = {
        "images": [record(1)],
        "annotations": [box, {**box, "id": 2, "image_id": 99}],
        "categories": [{"id": 7, "name": "cat"}],
    }
    root = lay_out(tmp_path / "coco", coco([1]), coco([2]), images_of([1], [2]), instances)
    _, out = run(root, tmp_path)
    assert [(row["category"], row["y"], row["iscrowd"]) for row in table(out, "objects")] == [
        ("cat", 2.5, False)
    ]


def test_outlines_are_not_held_in_memory(tmp_path: Path) -> None:
    box = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 9.5, "iscrowd": 0}
    polygon = [[(n * 7919 % 1000) / 8 for n in range(400)]]
    crowd = {"counts": "PVmk0d;" * 2000, "size": [480, 640]}  # run lengths, as COCO writes crowds
    many = [{**box, "id": n, "segmentation": (polygon, crowd)[n % 2]} for n in range(4000)]
    document = {**coco([1]), "annotations": many, "categories": [{"id": 3, "name": "cat"}]}
    root = lay_out(tmp_path / "coco", coco([1]), coco([2]), images_of([1], [2]), document)
    size = (root / "annotations" / f"instances_{TRAIN}.json").stat().st_size
    read_coco(root / "annotations", VAL, [])  # what is imported for it is no part of the measure
    tracemalloc.start()
    found = read_coco(root / "annotations", TRAIN, [])
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.objects) == 4000
    assert held < size / 40
    assert peak < size / 2  # some pieces of the text, and some thousand rows


def test_equal_images_are_stored_once(tmp_path: Path) -> None:
    same = {f"{TRAIN}/{n:012d}.jpg": jpeg(5) for n in (1, 2)} | images_of([], [3])
    root = lay_out(tmp_path / "coco", coco([1, 2]), coco([3]), same)
    summary, out = run(root, tmp_path)
    assert summary["images"] == 3
    assert len(pa.concat_tables(map(read_table, sorted(out.glob("files-*.parquet"))))) == 2


@pytest.mark.parametrize("seed", range(6))
def test_equal_images_are_in_one_split_whatever_their_ids(tmp_path: Path, seed: int) -> None:
    numbers = list(range(1, 17))
    same = {f"{TRAIN}/{n:012d}.jpg": jpeg(40 * (n % 4)) for n in numbers}
    root = lay_out(tmp_path / "coco", coco(numbers), coco([99]), same | images_of([], [99]))
    splits: list[dict[int, str]] = []
    for limit in (6, 11, 16):
        _, out = run(root, tmp_path, seed=seed, limit=limit, validation_share=0.5)
        rows = table(out, "images")
        kinds = {(row["sha256"], row["split"]) for row in rows}
        assert len(kinds) == len({sha256 for sha256, _ in kinds})
        splits.append({row["image_id"]: row["split"] for row in rows})
    assert splits[0].items() <= splits[1].items() <= splits[2].items()


# -- names as people see them ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_names_are_compared_after_unicodes_normalisation(tmp_path: Path, kind: str) -> None:
    apart, joined = "Mo\u0308we.jpg", "M\u00f6we.jpg"
    train = {**coco([1]), "images": [record(1, joined), record(2, "dir/2" + joined)]}
    (tmp_path / "coco" / TRAIN / "dir").mkdir(parents=True)
    images = {f"{TRAIN}/{apart}": jpeg(1), f"{TRAIN}/dir/2{apart}": jpeg(90)}
    root = lay_out(tmp_path / "coco", train, coco([9]), images | images_of([], [9]))
    if kind == "zip":
        pack_tree(root, TRAIN)
    _, out = run(root, tmp_path)
    assert reasons(out) == {}
    found = {row["image_id"]: row["sha256"] for row in table(out, "images")}
    assert found[1] == hashlib.sha256(jpeg(1)).hexdigest()
    assert found[2] == hashlib.sha256(jpeg(90)).hexdigest()


def test_of_two_names_that_look_the_same_the_written_one_is_meant(tmp_path: Path) -> None:
    apart, joined = "Mo\u0308we.jpg", "M\u00f6we.jpg"
    train = {**coco([]), "images": [record(1, joined)]}
    images = {f"{TRAIN}/{apart}": jpeg(90), f"{TRAIN}/{joined}": jpeg(1)}
    root = lay_out(tmp_path / "coco", train, coco([9]), images | images_of([], [9]))
    _, out = run(root, tmp_path)
    assert table(out, "images")[0]["sha256"] == hashlib.sha256(jpeg(1)).hexdigest()


def test_a_name_that_differs_in_capitals_is_told(tmp_path: Path) -> None:
    train = {**coco([]), "images": [record(1, "0001.jpg"), record(2, "0002.jpg")]}
    images = {f"{TRAIN}/0001.JPG": jpeg(1)} | images_of([], [9])
    root = lay_out(tmp_path / "coco", train, coco([9]), images)
    _, out = run(root, tmp_path, max_bad_share=1.0)
    assert [row["detail"] for row in table(out, "drops")] == [
        "0001.jpg; there is 0001.JPG",
        "0002.jpg",
    ]
    with pytest.raises(
        PipelineError, match=r"2 file missing, the first: 0001\.jpg; there is 0001\.JPG"
    ):
        run(root, tmp_path, max_bad_share=0.1)


def test_links_lead_anywhere_from_a_folder_of_the_users_own(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "coco", coco([1, 2]), coco([9]), images_of([1, 2], [9]))
    store = tmp_path / "elsewhere"
    store.mkdir()
    (root / TRAIN / f"{1:012d}.jpg").rename(store / "blob")
    (root / TRAIN / f"{1:012d}.jpg").symlink_to(store / "blob")
    (root / "annotations").rename(store / "annotations")
    (root / "annotations").mkdir()
    for path in (store / "annotations").iterdir():
        (root / "annotations" / path.name).symlink_to(path)
    (store / "more").mkdir()
    (root / TRAIN / f"{2:012d}.jpg").rename(store / "more" / f"{2:012d}.jpg")
    (root / TRAIN / "more").symlink_to(store / "more")
    (root / TRAIN / "round").symlink_to(root / TRAIN)
    summary, out = run(root, tmp_path)
    assert (summary["images"], reasons(out)) == (3, {})


# -- what cannot be used is dropped with its reason --------------------------------------------


def test_bad_images_are_dropped_with_their_reason(tmp_path: Path) -> None:
    train = coco([1, 2, 3, 4, 5, 6])
    train["images"] += [
        record(7, "../outside.jpg"),
        record(8, "/etc/passwd"),
        {"id": "x"},
        "\ud800",
    ]
    train["images"] += [record(2**70), record(9, "\ud800.jpg"), {"id": True, "file_name": "t.jpg"}]
    train["annotations"] += [{"id": 1}, {"id": 2**70, "image_id": 1, "caption": "big"}, None]
    train["annotations"] += [{"id": 2, "image_id": 1, "caption": "\ud800"}]
    images = images_of([1], [10]) | {
        f"{TRAIN}/{3:012d}.jpg": jpeg(3)[:300],
        f"{TRAIN}/{4:012d}.jpg": b"<html>404</html>",
        f"{TRAIN}/{5:012d}.jpg": b"",
        f"{TRAIN}/{6:012d}.jpg": jpeg(6, (200, 200)),
    }
    (tmp_path / "outside.jpg").write_bytes(jpeg(7))
    root = lay_out(tmp_path / "coco", train, coco([10]), images)
    summary, out = run(root, tmp_path, max_bad_share=1.0, max_pixels=10_000)
    found = reasons(out)
    assert found["2"] == "file missing"
    assert found["3"] == "broken image"
    assert found["4"] == "not an image"
    assert found["5"] == "empty file"
    assert found["6"] == "too many pixels"
    assert found["7"] == found["8"] == "unsafe file name"
    assert [row["kind"] for row in table(out, "drops") if row["reason"] == "broken record"] == [
        *["image"] * 5,
        *["caption"] * 4,
    ]
    assert summary["quarantined"] == 7
    assert [row["image_id"] for row in table(out, "images")] == [1, 10]
    kept = {row["record"]: row["data"] for row in table(out, "quarantine")}
    assert kept == {record: images[f"{TRAIN}/{int(record):012d}.jpg"] for record in ("3", "4", "6")}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_like_base_name_in_another_folder_is_another_image(tmp_path: Path, kind: str) -> None:
    longer = "set/a/4.jpg" if kind == "folder" else f"set/{TRAIN}/a/4.jpg"
    names = ["b/1.jpg", "a/2.jpg", "same.jpg", longer, "5.jpg", "6.jpg"]
    train = {**coco([]), "images": [record(n, name) for n, name in enumerate(names, 1)]}
    files = ["a/1.jpg", "a/2.jpg", "a/same.jpg", "b/same.jpg", "a/4.jpg", "c/5.jpg", "6.jpg"]
    images = {f"{TRAIN}/{name}": jpeg(30 * n) for n, name in enumerate(files)}
    for folder in "abc":
        (tmp_path / "coco" / TRAIN / folder).mkdir(parents=True)
    root = lay_out(tmp_path / "coco", train, coco([10]), images | images_of([], [10]))
    if kind == "zip":
        pack_tree(root, TRAIN)
    _, out = run(root, tmp_path, max_bad_share=1.0)
    assert reasons(out) == {"1": "file missing", "3": "ambiguous file name"}
    kept = {row["image_id"]: row["sha256"] for row in table(out, "images")}
    sources = {2: "a/2.jpg", 4: "a/4.jpg", 5: "c/5.jpg", 6: "6.jpg"}
    for image_id, name in sources.items():
        assert kept[image_id] == hashlib.sha256(images[f"{TRAIN}/{name}"]).hexdigest()


def pack_tree(root: Path, name: str) -> None:
    """Replace a folder with folders in it by a zip."""
    with zipfile.ZipFile(root / f"{name}.zip", "w") as packed:
        for path in sorted((root / name).rglob("*.jpg")):
            packed.write(path, path.relative_to(root).as_posix())
    shutil.rmtree(root / name)


def test_files_above_max_bytes_are_dropped(tmp_path: Path) -> None:
    big = {f"{TRAIN}/{2:012d}.jpg": jpeg(2) + b"\0" * 5000}
    root = lay_out(tmp_path / "coco", coco([1, 2]), coco([3]), images_of([1], [3]) | big)
    _, out = run(root, tmp_path, max_bytes=4000, max_bad_share=1.0)
    assert reasons(out) == {"2": "file refused"}
    assert table(out, "drops")[0]["detail"] == "larger than 4000 bytes"


def test_large_and_many_unusable_images_are_only_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.quarantine.LARGEST", 5)
    monkeypatch.setattr("pipeline.data.quarantine.MOST", 2)
    bad = {2: b"123456", 3: b"1234", 4: b"12345", 5: b"1"}
    files = {f"{TRAIN}/{number:012d}.jpg": data for number, data in bad.items()}
    root = lay_out(tmp_path / "coco", coco([1, *bad]), coco([9]), images_of([1], [9]) | files)
    _, out = run(root, tmp_path, max_bad_share=1.0)
    assert [row["record"] for row in table(out, "quarantine")] == ["3", "4"]
    assert set(reasons(out)) == {"2", "3", "4", "5"}


def test_too_many_bad_images_stop_the_run_with_their_reasons(tmp_path: Path) -> None:
    images = images_of([1], [9]) | {f"{TRAIN}/{2:012d}.jpg": b"no"}
    root = lay_out(tmp_path / "coco", coco([1, 2, 3, 4]), coco([9]), images)
    with pytest.raises(PipelineError, match="3 of 5 images are bad") as caught:
        run(root, tmp_path, max_bad_share=0.5)
    assert "2 file missing, 1 not an image" in str(caught.value)
    named = re.search(r"(/\S+\.csv) lists them all", str(caught.value))
    assert named is not None
    with Path(named[1]).open(newline="") as stream:
        told = {row["record"]: row["reason"] for row in csv.DictReader(stream)}
    assert told == {"2": "not an image", "3": "file missing", "4": "file missing"}
    run(root, tmp_path, max_bad_share=0.6)


def test_records_that_contradict_the_list_of_images_are_counted(tmp_path: Path) -> None:
    train = coco([1, 2])
    train["images"].append({**train["images"][0], "file_name": "other.jpg"})
    train["annotations"].append({"id": 77, "image_id": 5, "caption": "of nothing"})
    root = lay_out(tmp_path / "coco", train, coco([9]), images_of([1, 2], [9]))
    summary, out = run(root, tmp_path)
    told = {(row["kind"], row["record"], row["reason"]) for row in table(out, "drops")}
    assert told == {("image", "1", "id is taken"), ("caption", "77", "image not listed")}
    assert summary["images"] == 3


def test_no_usable_image_stops_the_run(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "coco", coco([1]), coco([2]))
    with pytest.raises(PipelineError, match="no image of the dataset") as caught:
        run(root, tmp_path, max_bad_share=1.0)
    assert "2 file missing" in str(caught.value)


def test_unreadable_records_are_counted_with_the_first_fault(tmp_path: Path) -> None:
    texts = [{"image_id": 1, "text": "a cat"}] * 3
    root = lay_out(
        tmp_path / "coco", {**coco([1]), "annotations": texts}, coco([2]), images_of([1], [2])
    )
    with pytest.raises(PipelineError, match=f"no caption of {TRAIN} can be used") as caught:
        run(root, tmp_path)
    told = (
        f"3 broken record, the first: captions_{TRAIN}.json annotations[0]: 'caption' is not text"
    )
    assert told in str(caught.value)
    nameless = {"images": [{"file_name": "1.jpg"}], "annotations": []}
    root = lay_out(tmp_path / "other", nameless, nameless)
    with pytest.raises(PipelineError, match="no image of the dataset") as caught:
        run(root, tmp_path)
    assert f"2 broken record, the first: captions_{TRAIN}.json images[0]: no 'id'" in str(
        caught.value
    )
    named = re.search(r"(/\S+\.csv) lists them all", str(caught.value))
    assert named is not None
    assert len(Path(named[1]).read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "broken", [b"{", b"", b"\xff\xfe\x00", b"[" * 100_000, b"<html>", b'{"images": [1e'],
    ids=["cut", "empty", "bytes", "deep", "html", "number"],
)  # fmt: skip
def test_broken_json_names_the_file(tmp_path: Path, broken: bytes) -> None:
    root = lay_out(tmp_path / "coco", broken, coco([1]), images_of([], [1]))
    with pytest.raises(PipelineError, match=f"captions_{TRAIN}.json is not valid JSON"):
        run(root, tmp_path)


@pytest.mark.parametrize(
    "shape", [[], 1, None, {"images": {}}, {"images": [], "annotations": None}]
)
def test_json_of_another_shape_names_the_file(tmp_path: Path, shape: Json) -> None:
    root = lay_out(tmp_path / "coco", coco([1]), json.dumps(shape).encode(), images_of([1], []))
    with pytest.raises(PipelineError, match=f"captions_{VAL}.json is JSON but not COCO's"):
        run(root, tmp_path)


def test_missing_parts_of_the_layout_are_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path)
    root = lay_out(tmp_path / "coco", coco([1]), coco([2]), images_of([1], [2]))
    (root / "annotations" / f"captions_{VAL}.json").unlink()
    with pytest.raises(PipelineError, match=f"holds no captions_{VAL}.json"):
        run(root, tmp_path)
    shutil.rmtree(root / VAL)
    with pytest.raises(StorageError, match=f"has no {VAL}"):
        run(root, tmp_path)


# -- splits and limits -------------------------------------------------------------------------


def test_an_id_in_both_splits_is_refused(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "coco", coco([1, 2]), coco([2, 3]), images_of([1, 2], [2, 3]))
    with pytest.raises(PipelineError, match=r"image ids \[2\] are in train2017 and in val2017"):
        run(root, tmp_path)


def test_a_larger_limit_keeps_what_a_smaller_one_chose(tmp_path: Path) -> None:
    train, val = list(range(1, 21)), list(range(100, 110))
    root = lay_out(tmp_path / "coco", coco(train), coco(val), images_of(train, val))
    chosen: list[dict[int, str]] = []
    for limit, tests in ((3, 2), (7, 5), (20, 10)):
        _, out = run(root, tmp_path, limit=limit, test_limit=tests, validation_share=0.3)
        chosen.append({row["image_id"]: row["split"] for row in table(out, "images")})
        assert len(chosen[-1]) == limit + tests
        assert list(chosen[-1].values()).count("test") == tests
    assert chosen[0].items() <= chosen[1].items() <= chosen[2].items()


@settings(max_examples=100, deadline=None)
@given(image_id=st.integers(0, 10**7), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_split_follows_from_the_id_alone(image_id: int, share: float, seed: int) -> None:
    found = split_of(image_id, share, seed)
    assert found in {"train", "validation"}
    assert found == split_of(image_id, share, seed)
    if found == "validation":
        assert split_of(image_id, 1.0, seed) == "validation"
    assert split_of(image_id, 0.0, seed) == "train"


def test_the_validation_share_is_kept_on_average() -> None:
    found = [split_of(number, 0.2, 0) for number in range(5000)]
    assert 0.17 < found.count("validation") / len(found) < 0.23


# -- whatever the JSON holds -------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.sampled_from([2**63, -(2**64), 10**400, 1e308, float("nan"), float("inf")]),
    st.sampled_from(["", "000000000001.jpg", "\ud800", "../x", "a\0b", "x" * 300, "1"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("id"), inner)
)


def objects_of(*fields: str, **fixed: Json) -> st.SearchStrategy[Json]:
    """Return records that have the format's fields, often with strange values."""
    good = {name: st.just(value) | values for name, value in fixed.items()}
    return st.fixed_dictionaries(good, optional={name: values for name in fields}) | values


documents = st.fixed_dictionaries(
    {},
    optional={
        "images": st.lists(objects_of("coco_url", id=1, file_name="000000000001.jpg"), max_size=3)
        | values,
        "annotations": st.lists(
            objects_of(
                "area", "iscrowd", id=1, image_id=1, caption="a cat", category_id=7,
                bbox=[1, 2, 3, 4],
            ),
            max_size=3,
        )
        | values,
        "categories": st.lists(objects_of("x", id=7, name="cat"), max_size=2) | values,
    },
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(train=documents | values, instances=documents | values)
def test_strange_json_gives_tables_or_a_clear_error(train: Json, instances: Json) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        root = lay_out(work / "coco", train, coco([9]), images_of([1], [9]), instances)
        try:
            summary, out = run(root, work, max_bad_share=1.0)
        except (PipelineError, StorageError) as error:
            assert str(error)  # noqa: PT017
            return
        assert summary["images"] == len(table(out, "images")) >= 1
        assert all(row["reason"] for row in table(out, "drops"))
