"""Datasets behind HTTP and on the Hub: the chosen images arrive, and little else is moved."""

import io
import json
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pipeline.data.datasets.coco2017
from flows.cli import main
from pipeline.data.datasets.lcs558k import TEST, TRAIN, read_lcs
from pipeline.data.images import images
from pipeline.data.probes import probe_images
from pipeline.engine.stage import StageContext
from pipeline.errors import PipelineError
from pipeline.recipe.data_sources import Coco2017Images, FolderImages, LcsImages
from pipeline.recipe.parts import ImagesPart
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.tables import read_table
from tests.support.fault_server import Fault, FaultServer
from tests.unit.pipeline.data.test_images import Recorder, coco

REVISION = "70f9d1e5e1a697fe35830875cfc7de1dd590d727"
NOISE = random.Random(0)


def image(number: int) -> bytes:
    """A JPEG of noise, so that it weighs a few kilobytes, as no zip entry does."""
    buffer = io.BytesIO()
    noise = NOISE.randbytes(64 * 48 * 3)
    Image.frombytes("RGB", (64, 48), noise).save(buffer, "JPEG", quality=95)
    return buffer.getvalue() + bytes([number % 256])


def zipped(files: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


TRAINED = {n: image(n) for n in range(1, 41)}
TESTED = {n: image(n) for n in range(101, 104)}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as started:
        yield started


END = 8192 + 9  # bytes of a small zip that are read for its directory, and of a few probes


def offer(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Serve a dataset in COCO's layout and return its root; its zips have no known checksum."""
    root = f"http://127.0.0.1:{server.port}"
    documents = {}
    for split, files in (("train2017", TRAINED), ("val2017", TESTED)):
        named = {f"{split}/{n:012d}.jpg": data for n, data in files.items()}
        server.serve(f"/zips/{split}.zip", zipped(named))
        document = coco(list(files))
        for record in document["images"]:
            path = f"/{split}/{record['file_name']}"
            record["coco_url"] = server.serve(path, named[path[1:]])
        documents[f"annotations/captions_{split}.json"] = json.dumps(document).encode()
    server.serve("/annotations/annotations_trainval2017.zip", zipped(documents))
    older = {"annotations/captions_val2014.json": json.dumps(coco([1, 2, 3, 999])).encode()}
    server.serve("/annotations/annotations_trainval2014.zip", zipped(older))
    unknown = dict.fromkeys(pipeline.data.datasets.coco2017.COCO_2017, (None, None))
    monkeypatch.setattr(pipeline.data.datasets.coco2017, "COCO_2017", unknown)
    monkeypatch.setattr(pipeline.data.datasets.coco2017, "COCO_2014", {})
    return root


def run(
    source: Any, work: Path, machine: Path | None = None, **changes: Any
) -> tuple[dict[str, Any], Path, Recorder]:
    """Run the stage in a folder, on a machine that may have run it before."""
    out, scratch = work / "out", work / "scratch"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    recorder, where = Recorder(), Settings(workdir=machine or work / "machine")
    part: ImagesPart = preset("coco").images.model_copy(update={"source": source, **changes})
    summary = dict(images(StageContext({}, out, scratch, where, recorder), part, 0))
    return summary, out, recorder


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return read_table(out / f"{name}.parquet").to_pylist()


def stored(out: Path) -> set[bytes]:
    return {
        row["data"] for path in out.glob("files-*.parquet") for row in read_table(path).to_pylist()
    }


@pytest.mark.parametrize("kind", ["folder", "coco2017"])
def test_over_http_only_the_chosen_images_are_moved(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    root = offer(server, monkeypatch)
    source = (
        FolderImages(root=root)
        if kind == "folder"
        else Coco2017Images(root=root, fetch="members", exclude_val2014=False)
    )
    summary, out, _ = run(source, tmp_path, limit=12)
    assert summary["images"] == 15
    found = {row["image_id"]: row for row in rows(out, "images")}
    assert stored(out) == {(TRAINED | TESTED)[key] for key in found}
    useful = sum(len(TRAINED[key]) for key in found if key in TRAINED)
    assert server.sent("/zips/train2017.zip") < 1.05 * useful + 8192  # small zip: its whole end
    whole = server.sent("/zips/val2017.zip")  # all of it is wanted, so it came in one piece
    assert [seen.start for seen in server.requests if seen.path == "/zips/val2017.zip"][-1] == 0
    assert whole > sum(map(len, TESTED.values()))


def test_every_way_to_fetch_gives_the_same_tables(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = offer(server, monkeypatch)
    made = {}
    for fetch in ("whole", "members", "addresses"):
        source = Coco2017Images(root=root, fetch=fetch, exclude_val2014=False)
        _, out, _ = run(source, tmp_path / fetch, limit=12)
        made[fetch] = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    assert made["whole"] == made["members"] == made["addresses"]


@pytest.mark.parametrize("fetch", ["members", "folder"])
def test_a_larger_subset_moves_only_the_difference(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetch: str
) -> None:
    root, machine = offer(server, monkeypatch), tmp_path / "machine"
    source = FolderImages(root=root)
    if fetch == "members":
        source = Coco2017Images(root=root, fetch="members", exclude_val2014=False)
    _, few, _ = run(source, tmp_path / "12", machine, limit=12)
    before, small = len(server.requests), set(rows_by_id(few))
    summary, more, _ = run(source, tmp_path / "20", machine, limit=20)
    assert summary["images"] == 23
    assert stored(more) == {(TRAINED | TESTED)[key] for key in rows_by_id(more)}
    moved = [seen for seen in server.requests[before:] if seen.method == "GET"]
    useful = sum(len(TRAINED[key]) for key in rows_by_id(more).keys() - small)
    fetched = sum(seen.sent for seen in moved if seen.path == "/zips/train2017.zip")
    assert fetched < 1.05 * useful + END
    assert sum(seen.sent for seen in moved if seen.path != "/zips/train2017.zip") < END
    before = len(server.requests)
    _, again, _ = run(source, tmp_path / "again", machine, limit=12)
    assert sum(seen.sent for seen in server.requests[before:]) < 2 * END
    names = sorted(path.name for path in few.iterdir())
    assert [(again / name).read_bytes() for name in names] == [
        (few / name).read_bytes() for name in names
    ]


def rows_by_id(out: Path) -> dict[int, dict[str, Any]]:
    return {row["image_id"]: row for row in rows(out, "images")}


@pytest.mark.parametrize("fetch", ["whole", "members", "addresses"])
def test_a_killed_run_that_has_all_it_wants_needs_no_network(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetch: str
) -> None:
    root = offer(server, monkeypatch)
    source = Coco2017Images(root=root, fetch=fetch, exclude_val2014=False)
    _, out, _ = run(source, tmp_path, limit=12)
    expected = {path.name: path.read_bytes() for path in out.iterdir()}
    before, server.always = len(server.requests), Fault(status=503)
    _, out, _ = run(source, tmp_path, limit=12)
    assert len(server.requests) == before
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected


def test_another_version_of_an_archive_is_not_taken_for_the_one_that_is_here(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, machine = offer(server, monkeypatch), tmp_path / "machine"
    source = FolderImages(root=root)
    run(source, tmp_path / "old", machine, limit=12)
    newer = {n: image(n) for n in TRAINED}
    files = {f"train2017/{n:012d}.jpg": data for n, data in newer.items()}
    server.serve("/zips/train2017.zip", zipped(files))
    _, out, _ = run(source, tmp_path / "new", machine, limit=12)
    assert stored(out) == {(newer | TESTED)[key] for key in rows_by_id(out)}


def flip(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)


def link_to_nothing(tar: Path) -> None:
    """Leave what there is when the disk that a person moved the file to is gone."""
    tar.unlink()
    tar.symlink_to("/no-such-disk/a.tar")


@pytest.mark.parametrize("damage", [flip, link_to_nothing])
def test_a_damaged_download_is_fetched_anew(
    server: FaultServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    root, machine = offer(server, monkeypatch), tmp_path / "machine"
    run(FolderImages(root=root), tmp_path / "one", machine, limit=12)
    [tar] = machine.rglob("*.tar")
    damage(tar)
    _, out, _ = run(FolderImages(root=root), tmp_path / "two", machine, limit=12)
    assert stored(out) == {(TRAINED | TESTED)[key] for key in rows_by_id(out)}
    assert [path.is_symlink() for path in machine.rglob("*.tar")] == [False]


def test_what_a_server_does_not_tell_apart_is_kept_for_one_recipe_only(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, machine = offer(server, monkeypatch), tmp_path / "machine"
    server.always = Fault(anonymous=True)
    _, out, _ = run(FolderImages(root=root), tmp_path / "one", machine, limit=12)
    assert stored(out) == {(TRAINED | TESTED)[key] for key in rows_by_id(out)}
    assert list((tmp_path / "one" / "scratch").rglob("*.tar"))
    assert not list(machine.rglob("*.tar"))


def test_downloads_can_be_forgotten(
    server: FaultServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, store = offer(server, monkeypatch), tmp_path / "store"
    ArtifactStore(str(store), store / "work" / "cache").claim()
    run(FolderImages(root=root), tmp_path / "one", store / "work", limit=12)
    main(["gc", "--store", str(store)])
    assert list((store / "work").rglob("*.tar"))
    main(["gc", "--store", str(store), "--downloads", "--dry-run"])
    assert list((store / "work").rglob("*.tar"))
    main(["gc", "--store", str(store), "--downloads"])
    assert not list((store / "work").rglob("*.tar"))
    assert "downloads" in capsys.readouterr().out


def test_a_server_without_range_gives_the_whole_zip(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = offer(server, monkeypatch)
    server.always = Fault(ignore_range=True)
    summary, _, recorder = run(FolderImages(root=root), tmp_path, limit=12)
    assert summary["images"] == 15
    assert any("does not support Range" in said for said in recorder.counted)


def test_images_that_are_not_there_are_drops_with_their_reason(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = offer(server, monkeypatch)
    body = zipped({f"train2017/{n:012d}.jpg": data for n, data in TRAINED.items() if n != 5})
    torn = bytearray(body)
    torn[body.index(TRAINED[6]) + 900] ^= 1
    server.serve("/zips/train2017.zip", bytes(torn))
    server.serve("/train2017/000000000007.jpg", b"", *[Fault(status=404)] * 9)
    for fetch, expected in (
        ("members", {"5": "file missing", "6": "unreadable member"}),
        ("addresses", {"7": "not at its address"}),
    ):
        source = Coco2017Images(root=root, fetch=fetch, exclude_val2014=False)
        _, out, _ = run(source, tmp_path / fetch, limit=39, max_bad_share=0.5)
        told = {row["record"]: row["reason"] for row in rows(out, "drops")}
        chosen = {row["image_id"] for row in rows(out, "images")} | {int(key) for key in told}
        assert told == {key: why for key, why in expected.items() if int(key) in chosen}


def test_images_of_val2014_are_left_out_and_counted(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = offer(server, monkeypatch)
    source = Coco2017Images(root=root, fetch="members", exclude_val2014=True)
    summary, out, _ = run(source, tmp_path, limit=12)
    assert summary["images"] == 15
    assert not {1, 2, 3} & {row["image_id"] for row in rows(out, "images")}
    told = {(row["record"], row["reason"]) for row in rows(out, "drops")}
    assert told == {(str(n), "in val2014") for n in (1, 2, 3)}


def test_another_size_than_the_published_one_is_refused(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = offer(server, monkeypatch)
    known = {**pipeline.data.datasets.coco2017.COCO_2017, "zips/train2017.zip": ("", 5)}
    monkeypatch.setattr(pipeline.data.datasets.coco2017, "COCO_2017", known)
    source = Coco2017Images(root=root, fetch="members", exclude_val2014=False)
    with pytest.raises(StorageError, match=r"train2017\.zip has \d+ bytes, expected 5"):
        run(source, tmp_path, limit=12)


# -- other places -----------------------------------------------------------------------------


def laid_out(folder: Path, train: str, val: str, annotations: str) -> Path:
    """Write the dataset's three parts below a folder; names say their kind."""
    documents = {}
    for name, split, files in ((train, "train2017", TRAINED), (val, "val2017", TESTED)):
        pack(folder / name, {f"{split}/{n:012d}.jpg": data for n, data in files.items()})
        documents[f"captions_{split}.json"] = json.dumps(coco(list(files))).encode()
    pack(folder / annotations, documents)
    return folder


def pack(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.suffix:
        path.mkdir()
        for name, data in files.items():
            (path / Path(name).name).write_bytes(data)
        return
    if path.suffix == ".zip":
        path.write_bytes(zipped(files))
        return
    with tarfile.open(path, "w:gz" if path.suffix in {".gz", ".tgz"} else "w") as packed:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))


LAYOUTS = [
    ("zips/train2017.zip", "zips/val2017.zip", "annotations/annotations_trainval2017.zip"),
    ("train2017.tar", "zips/val2017.tgz", "annotations.tar.gz"),
]
LOOSE = ("train2017", "zips/val2017", "annotations")


def expected_images(out: Path) -> set[bytes]:
    return {(TRAINED | TESTED)[key] for key in rows_by_id(out)}


@pytest.mark.s3
@pytest.mark.parametrize("layout", [*LAYOUTS, LOOSE], ids=["published", "tars", "loose"])
def test_a_dataset_in_a_bucket_is_read(
    s3_server: str, tmp_path: Path, layout: tuple[str, str, str]
) -> None:
    import s3fs

    assert s3_server
    bucket = f"coco-{tmp_path.name.replace('_', '-')[-20:]}".lower()
    files = s3fs.S3FileSystem()
    files.mkdir(bucket)
    files.put(str(laid_out(tmp_path / "here", *layout)), f"{bucket}/set", recursive=True)
    files.touch(f"{bucket}/set/{layout[0]}/")  # what consoles leave for a folder
    recipe = preset("coco").override(
        {"images.source": {"kind": "folder", "root": f"s3://{bucket}/set"}}
    )
    assert set(probe_images(recipe)) == set(layout)
    summary, out, _ = run(recipe.images.source, tmp_path / "work", limit=12)
    assert summary["images"] == 15
    assert stored(out) == expected_images(out)
    files.rm(f"{bucket}/set/{layout[1]}", recursive=True)
    with pytest.raises(StorageError, match=r"has no archive zips/val2017\.zip"):
        probe_images(recipe)


def test_tars_behind_http_are_found(server: FaultServer, tmp_path: Path) -> None:
    here = laid_out(tmp_path / "here", *LAYOUTS[1])
    for name in LAYOUTS[1]:
        server.serve(f"/set/{name}", (here / name).read_bytes())
    source = FolderImages(root=f"http://127.0.0.1:{server.port}/set")
    _, out, _ = run(source, tmp_path / "work", limit=12)
    assert stored(out) == expected_images(out)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["published", "tars"])
def test_a_file_url_is_a_folder_of_this_machine(
    tmp_path: Path, layout: tuple[str, str, str]
) -> None:
    here = laid_out(tmp_path / "with a blank", *layout)
    for root in (here.as_uri(), f"file://{here}", str(here)):
        _, out, _ = run(FolderImages(root=root), tmp_path / "work", limit=12)
        assert stored(out) == expected_images(out)
        assert not list((tmp_path / "work" / "scratch").iterdir())  # nothing was copied
    with pytest.raises(PipelineError, match="no such folder"):
        run(FolderImages(root=f"{here.as_uri()}-not"), tmp_path / "other", limit=12)


# -- LCS-558K ---------------------------------------------------------------------------------


def lcs_records(numbers: range) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{n:09d}",
            "image": f"{n % 3:05d}/{n:09d}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe it."},
                {"from": "gpt", "value": f"image number {n}"},
            ],
        }
        for n in numbers
    ]


def cached(home: Path, files: Mapping[str, bytes]) -> None:
    """Lay files out as the Hub's client caches them."""
    folder = home / "datasets--liuhaotian--LLaVA-Pretrain" / "snapshots" / REVISION
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


LCS = LcsImages(
    repository="liuhaotian/LLaVA-Pretrain",
    annotations="blip_laion_cc_sbu_558k.json",
    images="images.zip",
    revision=REVISION,
    test_share=0.3,
)


@pytest.fixture
def hub(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the Hub's address is the loopback server."""
    home = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(home), raising=False)
    template = f"http://127.0.0.1:{server.port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    return home


def lcs_files() -> tuple[bytes, bytes]:
    names = {f"{n % 3:05d}/{n:09d}.jpg": data for n, data in TRAINED.items()}
    return json.dumps(lcs_records(range(1, 41))).encode(), zipped(names)


def test_lcs_558k_comes_from_the_hubs_cache(hub: Path, tmp_path: Path) -> None:
    records, images = lcs_files()
    cached(hub, {LCS.annotations: records, LCS.images: images})
    summary, out, _ = run(LCS, tmp_path, limit=1000)
    assert summary == {"images": 40, "captions": 40, "objects": 0, "quarantined": 0}
    found = rows(out, "images")
    assert {row["origin"] for row in found} == {TRAIN, TEST}
    assert {row["split"] for row in found if row["origin"] == TEST} == {"test"}
    assert "test" not in {row["split"] for row in found if row["origin"] == TRAIN}
    assert rows(out, "captions")[0]["caption"].startswith("image number")


def test_lcs_558k_moves_only_the_chosen_images(
    server: FaultServer, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, images = lcs_files()
    cached(hub, {LCS.annotations: records})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    address = f"/datasets/{LCS.repository}/resolve/{REVISION}/{LCS.images}"
    server.serve("/signed/images.zip", images)
    elsewhere = f"http://127.0.0.1:{server.port}/signed/images.zip"
    server.serve(address, b"", *[Fault(redirect=elsewhere)] * 50)
    summary, out, _ = run(LCS, tmp_path, limit=6, test_limit=2)
    assert summary["images"] == 8
    useful = sum(row["bytes"] for row in rows(out, "images"))
    assert server.sent("/signed/images.zip") < 1.05 * useful + 8192


def test_what_the_hub_has_not_is_named(hub: Path, tmp_path: Path) -> None:
    assert not hub.exists()
    with pytest.raises(PipelineError, match=r"cannot fetch blip_laion.*LLaVA-Pretrain at 70f9d1e"):
        run(LCS, tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.just(2**70) | st.text(max_size=3)
    | st.sampled_from(["\ud800", "000000001", "1" * 30, "²", "../x"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["id", "image", "conversations", "value"]), inner),
    max_leaves=8,
)  # fmt: skip
turns = st.lists(st.fixed_dictionaries({"value": st.text() | values}) | values, max_size=3)
strange = st.fixed_dictionaries(
    {}, optional={"id": values, "image": st.just("a.jpg") | values, "conversations": turns}
)


@settings(max_examples=60, deadline=None)
@given(document=st.lists(strange | values, max_size=4) | values, share=st.floats(0, 1))
def test_strange_lcs_json_gives_images_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, document: Any, share: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "lcs.json"
    path.write_text(json.dumps(document))
    drops: list[dict[str, Any]] = []
    try:
        found = read_lcs(path, "lcs.json", share, 0, drops)
    except PipelineError as error:
        assert "lcs.json" in str(error)  # noqa: PT017
        return
    kept = [image for part in found.values() for image in part.images]
    if isinstance(document, list):
        assert len(kept) + len(drops) == len(document)
    assert len({image["id"] for image in kept}) == len(kept)
