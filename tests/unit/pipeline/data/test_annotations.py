"""Annotation files as people have them: what is plain is read, what is not is refused by name."""

import gzip
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.data.annotations import captions_of, objects_of, read_coco
from pipeline.errors import PipelineError
from storage.errors import StorageError

TRAIN, VAL = "train2017", "val2017"
Json = Any


def image(number: Json, file_name: str = "") -> dict[str, Json]:
    return {"id": number, "file_name": file_name or f"{number}.jpg"}


def caption(number: Json, about: Json, text: str = "a cat") -> dict[str, Json]:
    return {"id": number, "image_id": about, "caption": text}


def box(**changes: Json) -> dict[str, Json]:
    return {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], **changes}


def written(folder: Path, **files: Json) -> Path:
    """Write annotation files; names have __ for a slash, bytes are written as they are."""
    for name, value in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return folder


def columns(tables: Iterable[pa.Table]) -> dict[str, list[Json]]:
    found = [*tables]
    return pa.concat_tables(found).to_pydict() if found else {}


def document(images: list[Json], annotations: list[Json], **more: Json) -> dict[str, Json]:
    return {"images": images, "annotations": annotations, **more}


SMALL = document([image(1)], [caption(5, 1)])


# -- ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [str, float, "{:012d}".format])
def test_numbers_written_as_text_or_with_a_point_are_numbers(tmp_path: Path, form: Json) -> None:
    captions = document([image(form(17), "a.jpg")], [caption(form(3), form(17))])
    boxes = document(
        [image(17, "a.jpg")],
        [box(id=form(4), image_id=form(17), category_id=form(7))],
        categories=[{"id": form(7), "name": "cat"}],
    )
    folder = written(tmp_path, captions_train2017=captions, instances_train2017=boxes)
    drops: list[Json] = []
    found = read_coco(folder, TRAIN, drops)
    assert drops == []
    assert [record["id"] for record in found.images] == [17]
    assert columns(captions_of([found], {17})) == {
        "caption_id": [3],
        "image_id": [17],
        "caption": ["a cat"],
    }
    boxed = columns(objects_of([found], {17}))
    assert (boxed["object_id"], boxed["category"]) == ([4], ["cat"])


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        (None, "no 'id'"),
        ("seven", "'id' is not a whole number"),
        (1.5, "'id' is not a whole number"),
        ("9" * 30, "'id' is not a whole number"),
        (2.0**60, "'id' is not a whole number"),
    ],
)
def test_an_id_that_is_none_is_told_with_file_and_place(
    tmp_path: Path, number: Json, fault: str
) -> None:
    folder = written(tmp_path, captions_train2017=document([image(1), image(number, "b.jpg")], []))
    drops: list[Json] = []
    assert len(read_coco(folder, TRAIN, drops).images) == 1
    (dropped,) = drops
    assert dropped["reason"] == "broken record"
    assert (dropped["file"], dropped["record"]) == ("captions_train2017.json", "images[1]")
    assert dropped["detail"].startswith(fault)


def test_captions_and_boxes_without_ids_get_free_ones(tmp_path: Path) -> None:
    bare = [{"image_id": 1, "caption": "a"}, caption(6, 1, "b"), {"image_id": 1, "caption": "c"}]
    boxes = document([], [box(id=None), box(id=None)], categories=[{"id": 7, "name": "cat"}])
    folder = written(
        tmp_path,
        captions_train2017=document([image(1)], bare),
        instances_train2017=boxes,
        captions_val2017=document([image(2)], [{"image_id": 2, "caption": "d"}, caption(9, 2)]),
    )
    drops: list[Json] = []
    origins = [read_coco(folder, split, drops) for split in (TRAIN, VAL)]
    assert drops == []
    found = columns(captions_of(origins, {1, 2}))
    ids = dict(zip(found["caption"], found["caption_id"], strict=True))
    assert ids == {"a": 10, "b": 6, "c": 11, "d": 12, "a cat": 9}
    only = columns(captions_of(origins, {2}))
    assert only["caption_id"] == [12, 9]  # the same, whatever else is chosen
    assert columns(objects_of(origins, {1}))["object_id"] == [1, 2]


def test_one_record_per_caption_is_one_image_with_all_captions(tmp_path: Path) -> None:
    accents = ("caf\u00e9.jpg", "cafe\u0301.jpg")
    images = [image(12, accents[0]), image(11, accents[1]), image(10, accents[0]), image(20)]
    texts = [caption(n, about, f"text {n}") for n, about in enumerate((10, 11, 12, 20))]
    boxes = document(images, [box(image_id=12)], categories=[{"id": 7, "name": "cat"}])
    folder = written(
        tmp_path, captions_train2017=document(images, texts), instances_train2017=boxes
    )
    drops: list[Json] = []
    found = read_coco(folder, TRAIN, drops)
    assert drops == []
    assert [record["id"] for record in found.images] == [10, 20]
    assert columns(captions_of([found], {10, 20}))["image_id"] == [10, 10, 10, 20]
    assert columns(objects_of([found], {10}))["image_id"] == [10]


@pytest.mark.parametrize(
    ("written_as", "meant"),
    [("0", False), ("1", True), (0, False), (1, True), (0.0, False), (True, True), ("FALSE", False),
     (None, False), ("maybe", None), (2, None), ([], None)],
)  # fmt: skip
def test_a_crowd_is_what_the_flag_says(tmp_path: Path, written_as: Json, meant: Json) -> None:
    boxes = document([], [box(iscrowd=written_as)], categories=[{"id": 7, "name": "cat"}])
    folder = written(tmp_path, captions_train2017=SMALL, instances_train2017=boxes)
    drops: list[Json] = []
    found = columns(objects_of([read_coco(folder, TRAIN, drops)], {1})).get("iscrowd", [])
    assert found == ([] if meant is None else [meant])
    assert [row["detail"].split(":")[0] for row in drops] == (
        ["'iscrowd' is neither 0 nor 1"] if meant is None else []
    )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"bbox": [1, 2, "3", 4]}, "'bbox' is not a list of four numbers"),
        ({"category_id": 8}, "'category_id' is none of the categories"),
        ({"area": "big"}, "'area' is not a number"),
        ({"image_id": None}, "no 'image_id'"),
    ],
)
def test_a_broken_box_says_what_is_wrong(tmp_path: Path, changes: Json, fault: str) -> None:
    boxes = document([], [box(), box(**changes)], categories=[{"id": 7, "name": "cat"}])
    folder = written(tmp_path, captions_train2017=SMALL, instances_train2017=boxes)
    drops: list[Json] = []
    assert len(read_coco(folder, TRAIN, drops).objects) == 1
    assert [(row["record"], row["detail"].split(":")[0]) for row in drops] == [
        ("annotations[1]", fault)
    ]


# -- encodings and wrappings -------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_any_encoding_is_read_gzipped_or_not(tmp_path: Path, encoding: str, packed: bool) -> None:
    text = json.dumps(document([image(1)], [caption(5, 1, "ein Möwe")]), ensure_ascii=False)
    data = text.encode(encoding)
    name = f"captions_{TRAIN}.json{'.gz' if packed else ''}"
    (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    found = read_coco(tmp_path, TRAIN, [])
    assert columns(found.captions)["caption"] == ["ein Möwe"]


def test_a_cut_gzip_is_refused_by_name(tmp_path: Path) -> None:
    data = gzip.compress(json.dumps(SMALL).encode())[:-9]
    (tmp_path / f"captions_{TRAIN}.json.gz").write_bytes(data)
    with pytest.raises(PipelineError, match=r"captions_train2017\.json\.gz is not valid JSON.*cut"):
        read_coco(tmp_path, TRAIN, [])


def test_an_object_around_the_document_is_read_through(tmp_path: Path) -> None:
    folder = written(tmp_path, captions_train2017={"data": SMALL})
    assert len(read_coco(folder, TRAIN, []).captions) == 1


def test_broken_json_names_its_line(tmp_path: Path) -> None:
    text = json.dumps(SMALL, indent=1).replace('"caption":', '"caption"', 1)
    folder = written(tmp_path, captions_train2017=text.encode())
    line = next(n for n, row in enumerate(text.split("\n"), 1) if '"caption" ' in row)
    with pytest.raises(PipelineError, match=f"captions_train2017.json is not.*line {line} column"):
        read_coco(folder, TRAIN, [])


def test_the_last_of_equal_names_is_read_as_the_standard_library_does(tmp_path: Path) -> None:
    first = document([image(1)], [caption(5, 1, "first")])
    text = f'{{"categories": [], {json.dumps(first)[1:-1]}, {json.dumps(SMALL)[1:-1]}}}'
    found = read_coco(written(tmp_path, captions_train2017=text.encode()), TRAIN, [])
    assert columns(found.captions)["caption"] == ["a cat"]


@pytest.mark.parametrize("value", [[], 1, {"images": {}}, {"images": None, "annotations": []}])
def test_json_that_is_not_cocos_is_refused_by_name(tmp_path: Path, value: Json) -> None:
    folder = written(tmp_path, captions_train2017=value)
    with pytest.raises(PipelineError, match=r"captions_train2017\.json is JSON but not COCO's"):
        read_coco(folder, TRAIN, [])


def test_a_damaged_archive_is_told_before_its_broken_json(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"captions_{TRAIN}.json", json.dumps(SMALL))
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b'"images": [', b'"images": }', 1))
    with pytest.raises(StorageError, match=r"damaged or cut short .*CRC"):
        read_coco(tmp_path / "a.zip", TRAIN, [])


def test_missing_ids_that_the_largest_leaves_no_room_for_are_refused(tmp_path: Path) -> None:
    texts = [caption(2**63 - 1, 1), {"image_id": 1, "caption": "b"}]
    folder = written(tmp_path, captions_train2017=document([image(1)], texts))
    with pytest.raises(PipelineError, match="caption_id 9223372036854775807 leaves no room"):
        columns(captions_of([read_coco(folder, TRAIN, [])], {1}))


# -- which file is meant -----------------------------------------------------------------------


def test_a_backup_is_never_read_in_place_of_the_file_at_the_top(tmp_path: Path) -> None:
    old = document([image(1)], [caption(5, 1, "old")])
    folder = written(tmp_path, captions_train2017=SMALL, backup__captions_train2017=old)
    assert columns(read_coco(folder, TRAIN, []).captions)["caption"] == ["a cat"]


def test_two_files_that_lie_equally_near_are_refused_with_both_names(tmp_path: Path) -> None:
    folder = written(tmp_path, a__captions_train2017=SMALL, b__captions_train2017=SMALL)
    with pytest.raises(
        PipelineError, match=r"a/captions_train2017\.json and b/captions_train2017\.json"
    ):
        read_coco(folder, TRAIN, [])


@pytest.mark.parametrize("missing", [f"instances_{TRAIN}", f"captions_{VAL}"])
def test_a_file_that_lies_only_in_the_backup_is_refused(tmp_path: Path, missing: str) -> None:
    files = {f"captions_{TRAIN}": SMALL, f"backup__{missing}": SMALL}
    folder = written(tmp_path, **files)
    with pytest.raises(PipelineError, match=f"backup/{missing}.json in a folder below that of"):
        read_coco(folder, VAL if VAL in missing else TRAIN, [])


def test_the_plain_file_is_read_where_its_gzip_lies_beside_it(tmp_path: Path) -> None:
    folder = written(tmp_path, captions_train2017=SMALL)
    (folder / f"captions_{TRAIN}.json.gz").write_bytes(gzip.compress(b"old"))
    assert len(read_coco(folder, TRAIN, []).captions) == 1


def test_folders_side_by_side_are_no_backups(tmp_path: Path) -> None:
    files = {
        f"captions__captions_{TRAIN}": SMALL,
        f"boxes__instances_{TRAIN}": document([], [box()], categories=[{"id": 7, "name": "cat"}]),
    }
    found = read_coco(written(tmp_path, **files), TRAIN, [])
    assert (len(found.captions), len(found.objects)) == (1, 1)


def test_a_name_in_other_capitals_is_told(tmp_path: Path) -> None:
    folder = written(tmp_path, Captions_Train2017=SMALL)
    with pytest.raises(PipelineError, match=r"no captions_train2017\.json; there is Captions_Tra"):
        read_coco(folder, TRAIN, [])


def test_links_are_followed_in_a_folder_of_the_users_own_only(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "annotations"
    written(blobs, b0=SMALL)
    folder.mkdir()
    (folder / f"captions_{TRAIN}.json").symlink_to("../blobs/b0.json")
    assert len(read_coco(folder, TRAIN, [], own=True).captions) == 1
    with pytest.raises(PipelineError, match=r"was refused \(symlink leaves the folder\)"):
        read_coco(folder, TRAIN, [])
