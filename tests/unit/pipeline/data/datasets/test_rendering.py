import io
import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from pipeline.data.datasets.shapes.defects import NO_CAPTION, has_broken_image
from pipeline.data.datasets.shapes.drawing import draw
from pipeline.data.datasets.shapes.rendering import (
    CATEGORY_IDS,
    file_name,
    image_id,
    render_coco,
    render_conversations,
    scene_indices,
)
from pipeline.data.datasets.shapes.scenes import make_scene
from pipeline.data.datasets.shapes.wording import CONVERSATIONS_PER_IMAGE

SEED, TRAIN, VAL = 5, 400, 10


def ignore(_: int) -> None:
    pass


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    render_coco(root, seed=SEED, train_images=TRAIN, val_images=VAL, advance=ignore)
    return root


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    path = tmp_path_factory.mktemp("instruct") / "conversations.json"
    render_conversations(path, seed=SEED, train_images=TRAIN, val_images=VAL, advance=ignore)
    return json.loads(path.read_text())


def annotations(root: Path, kind: str, split: str) -> dict:
    with ZipFile(root / "annotations" / "annotations_trainval2017.zip") as archive:
        return json.loads(archive.read(f"annotations/{kind}_{split}.json"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        render_coco(tmp_path / name, seed=seed, train_images=9, val_images=3, advance=ignore)
        talk = tmp_path / name / "talk.json"
        render_conversations(talk, seed=seed, train_images=9, val_images=3, advance=ignore)
    one, again, other = (contents(tmp_path / name) for name in ("one", "again", "other"))
    assert sorted(one) == [
        "annotations/annotations_trainval2017.zip",
        "talk.json",
        "zips/train2017.zip",
        "zips/val2017.zip",
    ]
    assert one == again
    assert all(one[name] != other[name] for name in one)


def test_an_image_is_the_same_whatever_the_number_of_images(coco: Path, tmp_path: Path) -> None:
    render_coco(tmp_path, seed=SEED, train_images=6, val_images=2, advance=ignore)
    for split in ("train2017", "val2017"):
        with (
            ZipFile(tmp_path / f"zips/{split}.zip") as few,
            ZipFile(coco / f"zips/{split}.zip") as many,
        ):
            assert all(few.read(name) == many.read(name) for name in few.namelist())


@pytest.mark.parametrize(("split", "images"), [("train2017", TRAIN), ("val2017", VAL)])
def test_archives_have_cocos_layout(coco: Path, split: str, images: int) -> None:
    with ZipFile(coco / "zips" / f"{split}.zip") as archive:
        members = archive.infolist()
    assert len(members) == images
    assert all(re.fullmatch(split + r"/\d{12}\.jpg", member.filename) for member in members)
    assert {member.compress_type for member in members} == {ZIP_STORED}
    for kind in ("captions", "instances"):
        document = annotations(coco, kind, split)
        assert [f"{split}/{e['file_name']}" for e in document["images"]] == [
            member.filename for member in members
        ]
        keys = set(document["images"][0])
        assert {"id", "license", "coco_url", "width", "height", "date_captured"} <= keys
        ids = [entry["id"] for entry in document["annotations"]]
        assert len(set(ids)) == len(ids)
        known = {entry["id"] for entry in document["images"]}
        assert {entry["image_id"] for entry in document["annotations"]} == known


def test_image_ids_are_unique_across_the_splits(coco: Path) -> None:
    ids = [
        entry["id"]
        for split in ("train2017", "val2017")
        for entry in annotations(coco, "captions", split)["images"]
    ]
    assert len(set(ids)) == TRAIN + VAL


def test_sizes_in_the_annotations_are_those_of_the_files(coco: Path) -> None:
    with ZipFile(coco / "zips/val2017.zip") as archive:
        for number, entry in enumerate(annotations(coco, "captions", "val2017")["images"]):
            if not has_broken_image(number):
                data = archive.read(f"val2017/{entry['file_name']}")
                with Image.open(io.BytesIO(data)) as image:
                    assert image.size == (entry["width"], entry["height"])
                    assert (image.format, image.mode) == ("JPEG", "RGB")


def test_instances_enclose_what_is_drawn(coco: Path) -> None:
    document = annotations(coco, "instances", "val2017")
    assert {c["name"]: c["id"] for c in document["categories"]} == CATEGORY_IDS
    ids = sorted(CATEGORY_IDS.values())
    assert ids != list(range(ids[0], ids[0] + len(ids)))
    boxes: dict[int, list[dict]] = defaultdict(list)
    for entry in document["annotations"]:
        boxes[entry["image_id"]].append(entry)
    for index in scene_indices("val2017", VAL):
        scene = make_scene(SEED, index)
        difference = np.array(draw(scene)) != np.array(draw(replace(scene, objects=())))
        for item, entry in zip(scene.objects, boxes[image_id(index)], strict=True):
            assert entry["category_id"] == CATEGORY_IDS[item.shape]
            assert entry["iscrowd"] == 0
            assert_box_fits(entry, difference.any(axis=-1))


def assert_box_fits(entry: dict, drawn: np.ndarray) -> None:
    x, y, width, height = entry["bbox"]
    window = drawn[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1]
    assert window.any(axis=0).mean() > 0.9
    assert window.any(axis=1).mean() > 0.9
    assert abs(window.sum() - entry["area"]) < 0.35 * entry["area"]
    (polygon,) = entry["segmentation"]
    assert min(polygon[::2]) == x
    assert min(polygon[1::2]) == y
    assert 0.3 * width * height < entry["area"] <= width * height


# --- conversations ---


def test_records_follow_llavas_schema(records: list[dict]) -> None:
    assert len(records) == CONVERSATIONS_PER_IMAGE * (TRAIN + VAL)
    starts = 0
    for record in records:
        assert set(record) == {"id", "image", "conversations"}
        assert re.fullmatch(r"\d{12}\.jpg", record["image"])
        turns = record["conversations"]
        assert [t["from"] for t in turns] == [("human", "gpt")[k % 2] for k in range(len(turns))]
        first = turns[0]["value"]
        assert first.startswith("<image>\n") or first.endswith("\n<image>")
        assert not any("<image>" in turn["value"] for turn in turns[1:])
        starts += first.startswith("<image>")
    assert 0.4 < starts / len(records) < 0.6


# --- defects ---


def test_half_a_per_cent_of_the_files_are_broken_in_two_ways(coco: Path) -> None:
    errors = []
    with ZipFile(coco / "zips/train2017.zip") as archive:
        for name in archive.namelist():
            try:
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    image.load()
            except (OSError, UnidentifiedImageError) as error:
                errors.append(type(error))
    assert len(errors) == 0.005 * TRAIN
    assert set(errors) == {OSError, UnidentifiedImageError}


def test_half_a_per_cent_of_the_images_have_a_caption_to_drop(coco: Path) -> None:
    texts = [e["caption"] for e in annotations(coco, "captions", "train2017")["annotations"]]
    assert len(texts) == 5 * TRAIN
    assert sum(text == NO_CAPTION for text in texts) == 1
    assert sum(len(text) > 120 for text in texts) == 1


def test_half_a_per_cent_of_the_records_have_a_defect_of_each_kind(
    coco: Path, records: list[dict]
) -> None:
    existing = {
        entry["file_name"]
        for split in ("train2017", "val2017")
        for entry in annotations(coco, "captions", split)["images"]
    }
    found: Counter[str] = Counter()
    for record in records:
        values = [turn["value"] for turn in record["conversations"]]
        found["missing image"] += record["image"] not in existing
        found["odd"] += len(values) % 2
        found["empty"] += not all(values)
        found["two markers"] += values[0].count("<image>") == 2
    assert found == {"missing image": 1, "odd": 1, "empty": 1, "two markers": 1}


# --- behaviour of the writers ---


def test_progress_counts_every_image(tmp_path: Path) -> None:
    steps: list[int] = []
    render_coco(tmp_path, seed=1, train_images=5, val_images=2, advance=steps.append)
    assert sum(steps) == 7
    render_conversations(
        tmp_path / "talk.json", seed=1, train_images=5, val_images=2, advance=steps.append
    )
    assert sum(steps) == 14


def test_an_interrupted_render_leaves_no_file(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_coco(tmp_path, seed=1, train_images=5, val_images=2, advance=interrupt)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("images", [0, -1, 500_001])
def test_an_impossible_number_of_images_is_refused(tmp_path: Path, images: int) -> None:
    with pytest.raises(ValueError, match="train2017 must have 1 to 500000 images"):
        render_coco(tmp_path, seed=1, train_images=images, val_images=1, advance=ignore)
    assert contents(tmp_path) == {}


def test_file_names_are_image_ids_in_twelve_digits() -> None:
    assert file_name(2) == "000000000007.jpg"
    assert image_id(2) == 7
