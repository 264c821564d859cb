"""Captioned images out of tables, folders and shards: the same data is read from each alike."""

import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.captioned import Captioned, annotations_of
from pipeline.data.images import images
from pipeline.data.probes import probe_images
from pipeline.engine.stage import StageContext
from pipeline.errors import PipelineError
from pipeline.recipe.data_sources import FolderImages, PairImages, TableImages
from pipeline.recipe.parts import ImagesPart
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.tables import read_table
from tests.support.fault_server import FaultServer
from tests.unit.pipeline.data.test_images import Recorder, jpeg

PAIRS = {f"{n:03d}.jpg": (f"image {n}, seen", f'a "{n}" again') for n in range(40)}
# A byte behind the image, since colours that are nearly alike are one JPEG.
BYTES = {name: jpeg(number) + bytes([number]) for number, name in enumerate(PAIRS)}


def table_source(path: str, **changes: str) -> TableImages:
    fields = {"root": "", "image": "image", "caption": "caption", "split": "", **changes}
    return TableImages(path=path, test_share=0.2, **fields)


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, data in BYTES.items():
        (folder / name).write_bytes(data)


def write_delimited(folder: Path, suffix: str, delimiter: str) -> TableImages:
    write_images(folder / "images")
    with (folder / f"pairs{suffix}").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(["image", "caption"])
        writer.writerows([name, text] for name, texts in PAIRS.items() for text in texts)
    return table_source(str(folder / f"pairs{suffix}"), root="images")


def as_csv(folder: Path) -> TableImages:
    return write_delimited(folder, ".csv", ",")


def as_semicolons(folder: Path) -> TableImages:
    return write_delimited(folder, ".csv", ";")


def as_tsv(folder: Path) -> TableImages:
    return write_delimited(folder, ".tsv", "\t")


def as_json_lines(folder: Path) -> TableImages:
    write_images(folder / "images")
    lines = (json.dumps({"image": name, "caption": texts}) for name, texts in PAIRS.items())
    with gzip.open(folder / "pairs.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write("\n".join(lines))
    return table_source(str(folder / "pairs.jsonl.gz"), root=str(folder / "images"))


def as_parquet(folder: Path) -> TableImages:
    write_images(folder)
    rows = pa.table({"file": list(PAIRS), "texts": [list(texts) for texts in PAIRS.values()]})
    pq.write_table(rows, folder / "pairs.parquet")
    return table_source(str(folder / "pairs.parquet"), root=".", image="file", caption="texts")


def as_text_files(folder: Path) -> PairImages:
    write_images(folder)
    for name, texts in PAIRS.items():
        (folder / name).with_suffix(".txt").write_text("\n".join(texts) + "\n", "utf-8")
    return PairImages(root=str(folder), captions="beside", test_share=0.2)


def members(number: int, name: str) -> dict[str, bytes]:
    """The members of a sample, its captions as text or as JSON."""
    texts = PAIRS[name]
    if number % 2:
        return {name: BYTES[name], f"{name[:-4]}.json": json.dumps({"caption": texts}).encode()}
    return {name: BYTES[name], f"{name[:-4]}.txt": "\n".join(texts).encode()}


def as_shards(folder: Path) -> PairImages:
    folder.mkdir()
    for shard in range(4):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as archive:
            for number, name in list(enumerate(PAIRS))[shard::4]:
                for member, data in members(number, name).items():
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return PairImages(root=str(folder), captions="beside", test_share=0.2)


def as_zip(folder: Path) -> PairImages:
    folder.mkdir()
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for number, name in enumerate(PAIRS):
            for member, data in members(number, name).items():
                archive.writestr(member, data)
    return PairImages(root=str(folder / "all.zip"), captions="beside", test_share=0.2)


def as_bucket(folder: Path) -> PairImages:
    place = fsspec.filesystem("memory")
    for number, name in enumerate(PAIRS):
        for member, data in members(number, name).items():
            place.pipe_file(f"/{folder.name}-pairs/{member}", data)
    return PairImages(root=f"memory://{folder.name}-pairs", captions="beside", test_share=0.2)


Writer = Callable[[Path], TableImages | PairImages]
WRITERS: list[Writer] = [
    as_csv,
    as_semicolons,
    as_tsv,
    as_json_lines,
    as_parquet,
    as_text_files,
    as_shards,
    as_zip,
    as_bucket,
]


def run(source: Any, work: Path, **changes: Any) -> tuple[dict[str, Any], Path]:
    """Run the stage; return its summary and its folder."""
    out, scratch = work / "out", work / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    context = StageContext({}, out, scratch, Settings(workdir=work / "machine"), Recorder())
    part: ImagesPart = preset("coco").images.model_copy(
        update={
            "source": source,
            "limit": 100,
            "test_limit": 100,
            "max_bad_share": 0.5,
            "validation_share": 0.2,
            **changes,
        }
    )
    return dict(images(context, part, 0)), out


def told(out: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Split and captions of each image, by the hash of its bytes."""
    captions: dict[int, list[str]] = {}
    for row in read_table(out / "captions.parquet").to_pylist():
        captions.setdefault(row["image_id"], []).append(row["caption"])
    return {
        row["sha256"]: (row["split"], tuple(captions[row["image_id"]]))
        for row in read_table(out / "images.parquet").to_pylist()
    }


def drops(out: Path) -> list[tuple[str, str]]:
    rows = read_table(out / "drops.parquet").to_pylist()
    return [(row["record"], row["reason"]) for row in rows]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, tuple[str, ...]]]:
    folder = tmp_path_factory.mktemp("expected")
    found = told(run(as_csv(folder / "data"), folder / "work")[1])
    assert sorted(texts for _, texts in found.values()) == sorted(PAIRS.values())
    assert {split for split, _ in found.values()} == {"train", "validation", "test"}
    return found


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_the_same_pairs_give_the_same_splits_captions_and_bytes(
    tmp_path: Path, writer: Writer, expected: dict[str, Any]
) -> None:
    summary, out = run(writer(tmp_path / "data"), tmp_path / "work")
    assert told(out) == expected
    assert drops(out) == []
    assert summary == {"images": 40, "captions": 80, "objects": 0, "quarantined": 0}


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_a_changed_source_is_noticed(tmp_path: Path, writer: Writer) -> None:
    source = writer(tmp_path / "data")
    recipe = preset("photos")
    recipe = recipe.model_copy(
        update={"images": recipe.images.model_copy(update={"source": source})}
    )
    before = probe_images(recipe)
    assert before == probe_images(recipe)
    if writer is as_bucket:
        fsspec.filesystem("memory").pipe_file("/data-pairs/000.txt", b"another caption")
    else:
        path = next(p for p in sorted((tmp_path / "data").rglob("*")) if p.is_file())
        path.write_bytes(path.read_bytes() + b" ")
    assert probe_images(recipe) != before


def as_coco(folder: Path) -> FolderImages:
    """The same in COCO's layout, with the splits that the others get by chance."""
    (folder / "annotations").mkdir(parents=True)
    names = list(PAIRS)
    for split, chosen in (("train2017", names[8:]), ("val2017", names[:8])):
        (folder / split).mkdir()
        records = [{"id": names.index(name), "file_name": name} for name in chosen]
        for name in chosen:
            (folder / split / name).write_bytes(BYTES[name])
        texts = [(names.index(name), text) for name in chosen for text in PAIRS[name]]
        annotations = [
            {"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(texts)
        ]
        (folder / "annotations" / f"captions_{split}.json").write_text(
            json.dumps({"images": records, "annotations": annotations})
        )
    return FolderImages(root=str(folder))


def test_cocos_layout_holds_the_same_pairs(tmp_path: Path, expected: dict[str, Any]) -> None:
    _, out = run(as_coco(tmp_path / "data"), tmp_path / "work")
    assert {k: texts for k, (_, texts) in told(out).items()} == {
        k: texts for k, (_, texts) in expected.items()
    }


@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_images_inside_a_parquet_file_need_no_folder(tmp_path: Path, form: str) -> None:
    held: list[Any] = [BYTES[name] for name in PAIRS]
    if form == "struct":  # as the Hugging Face Hub stores them
        held = [{"bytes": BYTES[name], "path": name} for name in PAIRS]
    splits = ["test" if n < 5 else "validation" if n < 9 else "train" for n in range(40)]
    rows = pa.table({"image": held, "caption": [t[0] for t in PAIRS.values()], "split": splits})
    pq.write_table(rows, tmp_path / "pairs.parquet")
    source = table_source(str(tmp_path / "pairs.parquet"), split="split")
    _, out = run(source, tmp_path / "work")
    found = {texts: split for split, texts in told(out).values()}
    assert found == {
        (texts[0],): split for texts, split in zip(PAIRS.values(), splits, strict=True)
    }


def test_images_behind_addresses_are_fetched(tmp_path: Path) -> None:
    with FaultServer() as server:
        with (tmp_path / "pairs.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["url", "text"])
            for name, texts in PAIRS.items():
                writer.writerow([server.serve(f"/{name}", BYTES[name]) + "?size=large", texts[0]])
            writer.writerow([f"http://127.0.0.1:{server.port}/gone.jpg", "it is gone"])
        source = table_source(str(tmp_path / "pairs.csv"), image="url", caption="text")
        summary, out = run(source, tmp_path / "work")
    assert summary["images"] == 40
    assert [reason for _, reason in drops(out)] == ["not at its address"]


def test_a_table_and_its_zip_behind_http(tmp_path: Path, expected: dict[str, Any]) -> None:
    as_csv(tmp_path / "data")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in BYTES.items():
            archive.writestr(f"images/{name}", data)
    with FaultServer() as server:
        table = server.serve("/set/pairs.csv", (tmp_path / "data/pairs.csv").read_bytes())
        server.serve("/set/images.zip", buffer.getvalue())
        _, out = run(table_source(table, root="images.zip"), tmp_path / "work")
    assert told(out) == expected


def test_rows_that_cannot_be_used_are_counted_with_their_place(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    rows = [
        {"image": "000.jpg", "caption": "a good one", "split": "train"},
        {"image": "001.jpg", "caption": "  ", "split": "train"},
        {"image": None, "caption": "of nothing", "split": "train"},
        {"image": "002.jpg", "caption": "of a strange split", "split": "spare"},
        {"image": "../../etc/passwd", "caption": "of a secret", "split": "train"},
        {"image": "none.jpg", "caption": "of a lost file", "split": "train"},
        {"image": str(tmp_path / "data/003.jpg"), "caption": "by its path", "split": "val"},
        {"image": "./004.jpg", "caption": "held out", "split": "test"},
    ]
    path = tmp_path / "data/pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    _, out = run(table_source(str(path), root=".", split="split"), tmp_path / "work")
    found = read_table(out / "drops.parquet").to_pylist()
    by_row = {row["record"]: row["reason"] for row in found if row["record"].startswith("row")}
    assert by_row == {"row 2": "no caption", "row 3": "no image", "row 4": "unknown split"}
    assert {row["reason"] for row in found} >= {"unsafe file name", "file missing"}
    assert sorted(split for split, _ in told(out).values()) == ["test", "train", "validation"]


def test_a_caption_file_that_is_damaged_costs_its_image_only(tmp_path: Path) -> None:
    source = as_text_files(tmp_path / "data")
    (tmp_path / "data/000.txt").write_bytes(b"\xff\xfe\x00\xd8")
    (tmp_path / "data/001.txt").unlink()
    (tmp_path / "data/002.txt").unlink()
    (tmp_path / "data/002.json").write_text("{")
    summary, out = run(source, tmp_path / "work")
    assert summary["images"] == 37
    reasons = dict(drops(out))
    assert reasons["001.jpg"] == "no caption"
    assert reasons["002.jpg"] == "unreadable captions"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"root": ""}, r"names files, but images\.source\.root is not set"),
        ({"image": "file"}, r"no column 'file'\n.*image, caption"),
        ({"path": "nowhere.csv"}, r"no such file: .*nowhere\.csv"),
        ({"path": "pairs.xlsx"}, r"pairs\.xlsx is not a table\n.*\.csv"),
        ({"caption": "image", "image": "caption"}, r"file missing"),
    ],
    ids=["root", "column", "file", "kind", "swapped"],
)
def test_what_is_wrong_with_a_table_is_told(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    as_csv(tmp_path / "data")
    (tmp_path / "data/pairs.xlsx").touch()
    fields = {"path": "pairs.csv", "root": "images", **changes}
    fields["path"] = str(tmp_path / "data" / fields["path"])
    with pytest.raises((PipelineError, StorageError), match=words):
        run(table_source(**fields), tmp_path / "work")


def test_a_folder_without_captions_says_what_is_expected(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    with pytest.raises(PipelineError, match=r"a\.txt, or in a\.json"):
        run(
            PairImages(root=str(tmp_path / "data"), captions="beside", test_share=0.2),
            tmp_path / "work",
        )


def records(names: list[str]) -> list[Captioned]:
    return [Captioned(name, name, ("a caption",)) for name in names]


@settings(max_examples=50, deadline=None)
@given(
    names=st.lists(st.text(min_size=1, max_size=8), unique=True, min_size=1, max_size=30),
    more=st.lists(st.text(min_size=9, max_size=12), unique=True, max_size=10),
    seed=st.integers(0, 9),
)
def test_an_image_keeps_its_id_and_origin_when_others_come(
    names: list[str], more: list[str], seed: int
) -> None:
    def origins(of: list[str]) -> dict[str, tuple[int, str]]:
        found = annotations_of(records(of), 0.3, seed, [])
        return {r["file_name"]: (r["id"], r["origin"]) for p in found.values() for r in p.images}

    before, after = origins(names), origins([*more, *names])
    assert before.items() <= after.items()
    assert len({key for key, _ in after.values()}) == len(after)
    assert all(0 <= key < 2**53 for key, _ in after.values())
