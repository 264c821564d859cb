"""Files that are not ours: no command removes, replaces or adopts any, in a store or elsewhere."""

import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.cli import main
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.fetch.download_cache import FOLDER as DOWNLOADS
from storage.layout import MARK
from storage.store.artifacts import ArtifactStore
from storage.store.foreign_files import strangers
from storage.store.garbage import garbage_of
from storage.store.mark import require_store
from storage.store.published import add_entry, read_history
from storage.store.survey import DAY, take_survey
from tests.support.fake_stages import make
from tests.support.store_fixtures import PLACES, add, again, new_uri, payload

DEMO = preset("demo")
FILES = {"a.bin": b"a" * 100, "deep/b.bin": b"b"}
NO_STORE = "no phivision store here"
REPLACING = (
    ("gc", "--keep", "0", "--days", "0"),
    ("gc", "--keep", "0", "--days", "0", "--downloads"),
    ("rollback",),
    ("tag", "paper"),
    ("accept", "images"),
)

# -- names: of nobody, and close to ours ----------------------------------------------------------

HEX = st.text("0123456789abcdef", min_size=40, max_size=64)
# A name of ours, the part to spoil in {}, and the lengths of the numbers in that part.
CLOSE = {
    "artifacts/numbers/{}/a.bin": (16, 8),
    "attempts/numbers/{}.json": (16, 8),
    "damaged/numbers/{}.json": (16, 8),
    "manifests/numbers/{}.json": (64,),
    "used/numbers/{}.json": (64,),
    "leases/numbers-{}/00000001.json": (16,),
    "leases/run-{}/00000001.json": (32,),
    "runs/{}.json": (10,),
    "runs/.{}.json.01234567.tmp": (10,),
    "src/.{}.json.01234567.tmp": (10,),
    "reports/{}.html": (10,),
    "work/workspaces/numbers-{}/scratch/a": (16,),
    "work/locks/numbers-{}.lock": (16,),
    "work/locks/run-{}.lock": (32,),
    "work/cache/stamps/{}.json": (16, 8),
    "work/downloads/{}/a.tar": (16,),
}
FOLDERS = (
    "", "artifacts", "artifacts/numbers", "attempts", "damaged/numbers", "leases", "manifests",
    "manifests/numbers", "published", "reports", "runs", "used/numbers", "src/deep", "work",
    "work/workspaces", "work/downloads", "work/locks",
)  # fmt: skip
SPOIL = (
    lambda number: number[:-1],
    lambda number: f"{number}0",
    lambda number: f"{number[:-1]}g",
    lambda number: f"{number[:-1]}A",
    lambda number: f"{number} (copy)",
    lambda number: f"{number}.bak",
)


@st.composite
def close_names(draw: st.DrawFn) -> str:
    form = draw(st.sampled_from(sorted(CLOSE)))
    numbers = [draw(HEX).ljust(64, "0")[:length] for length in CLOSE[form]]
    at = draw(st.integers(0, len(numbers) - 1))
    numbers[at] = draw(st.sampled_from(SPOIL))(numbers[at])
    return form.format("-".join(numbers))


PART = st.text(st.characters(codec="utf-8", exclude_categories=("C",), exclude_characters="/"))
WORDS = st.lists(
    PART.filter(lambda part: part.strip(". ") and len(part.encode()) < 100), min_size=1, max_size=4
)
NAMES = st.one_of(
    close_names(),
    st.builds(
        lambda folder, words: "/".join([*([folder] if folder else []), *words]),
        st.sampled_from(FOLDERS),
        WORDS,
    ),
)
FOREIGN = st.dictionaries(
    NAMES, st.tuples(st.binary(max_size=20), st.floats(0, 400)), min_size=1, max_size=12
)


def run_all(uri: str) -> list[str]:
    """Run every command that removes, replaces or adopts; return how each has ended."""
    ends = []
    for command in REPLACING:
        try:
            main([*command, "--store", uri])
            ends.append("")
        except SystemExit as end:
            ends.append(str(end.code))
    return ends


def put_into(root: Path, files: Mapping[str, tuple[bytes, float]]) -> dict[str, object]:
    """Write files so many days old, where nothing is in the way, and return how they look."""
    written = []
    for name, (data, age) in files.items():
        path = root / name
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                stream.write(data)
            written.append(name)
            for each in (path, *path.parents[: name.count("/")]):
                os.utime(each, (time.time() - age * DAY,) * 2)
    return look(root, written)


def look(root: Path, names: list[str]) -> dict[str, object]:
    found = {}
    for name in names:
        path = root / name
        there = path.is_file()
        found[name] = (path.read_bytes(), path.stat().st_mtime_ns) if there else None
    return found


# -- a folder that is not a store ------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(files=FOREIGN)
def test_no_command_works_on_a_folder_that_is_no_store(
    files: Mapping[str, tuple[bytes, float]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = put_into(Path(folder), files)
        everything = {path for path in Path(folder).rglob("*")}
        assert set(run_all(folder)) == {"1"}
        assert look(Path(folder), [*before]) == before
        assert {path for path in Path(folder).rglob("*")} == everything


@pytest.mark.parametrize("said", ["by an empty variable", "by --store"])
@pytest.mark.parametrize("command", REPLACING, ids=" ".join)
def test_a_project_folder_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    said: str,
) -> None:
    names = (
        "artifacts/exp1/run7/weights.bin", "reports/q3.pdf", "used/data/a.csv",
        "leases/2024/office.pdf", "work/workspaces/myexp/x", "src/.draft.txt.tmp",
    )  # fmt: skip
    before = put_into(tmp_path, dict.fromkeys(names, (b"precious", 30.0)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHIVISION_STORE", "")
    with pytest.raises(SystemExit) as end:
        main([*command, *(["--store", "."] if said == "by --store" else [])])
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith(f"phivision: {NO_STORE}")
    assert "check --store and PHIVISION_STORE" in told
    assert told.count("\n  → ") == told.count("\n") - 1 == 1
    # An empty variable counts as unset, so the store is `.phivision`, which is not there.
    assert (str(tmp_path / ".phivision") in told) == (said == "by an empty variable")
    assert look(tmp_path, [*before]) == before
    assert not (tmp_path / ".phivision").exists()


def test_verify_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "--store", str(tmp_path)])
    assert NO_STORE in capsys.readouterr().err


def test_a_remote_place_that_is_no_store_is_refused(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = new_uri(place, tmp_path, request)
    files = ArtifactStore(uri, tmp_path / "cache").files
    names = ("reports/q3.pdf", "leases/2024/office.pdf", "manifests/a/b.json", "x")
    for name in names:
        files.write(name, b"precious")
    assert set(run_all(uri)) == {"1"}
    assert capsys.readouterr().err.count(NO_STORE) == len(REPLACING)
    assert [files.read(name) for name in names] == [b"precious"] * len(names)
    assert files.read(MARK) is None


# -- inside a real store --------------------------------------------------------------------------


def fill(store: ArtifactStore, folder: Path) -> None:
    """Make a store with garbage of every kind, and with something to go back to."""
    chosen = Settings(store="unused", workdir=folder / "work")
    for seed in (0, 7):
        make(store, chosen, DEMO.override({"seed": seed}))
    for number in range(3):
        made = add(store, folder / "made", FILES, payload("publish", code={"n": str(number)}))
        add_entry(
            store, read_history(store), action="forced", run="0" * 10, reason="", against="",
            fingerprint=made.fingerprint, digest=f"{number}",
        )  # fmt: skip
    store.write(f"reports/{'0' * 10}.html", b"<p>")
    store.write(f"leases/numbers-{'0' * 16}/00000001.json", b'{"beat": 0, "done": 0}')
    store.write(f"used/numbers/{'0' * 64}.json", b"{}")
    store.write(f"artifacts/numbers/{'0' * 16}-{'0' * 8}/half", b"")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local store with its work folder in it, years old."""
    root = tmp_path_factory.mktemp("filled") / "store"
    fill(ArtifactStore(str(root), root / "work" / "cache"), root)
    shutil.rmtree(root / "made")
    for name in ("workspaces/numbers-0000000000000000/scratch", f"{DOWNLOADS}/{'0' * 16}"):
        (root / "work" / name).mkdir(parents=True)
        (root / "work" / name / "a").write_bytes(b"a")
    return root


def test_every_command_leaves_what_is_not_ours_in_a_store(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(files=FOREIGN, words=WORDS, at=st.integers(0, 1000))
    def check(files: Mapping[str, tuple[bytes, float]], words: list[str], at: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "store"
            shutil.copytree(filled, root)
            # One of them lies in a folder of ours, but those whose content nobody else knows.
            ours = sorted(
                path.relative_to(root).as_posix()
                for path in root.rglob("*")
                if path.is_dir()
                and not {"scratch", "0" * 16, f"{'0' * 16}-{'0' * 8}"} & {*path.parts}
            )
            inside = "/".join([ours[at % len(ours)], "of somebody", *words])
            before = put_into(root, {**files, inside: (b"x", 30.0)})
            capsys.readouterr()
            assert run_all(str(root)) == ["", "", "", "", "1"]
            told = capsys.readouterr().out
            assert f"{sum(map(bool, before.values()))} other files are not phivision's" in told
            make(ArtifactStore(str(root), root / "work" / "cache"), Settings(store=str(root)), DEMO)
            assert look(root, [*before]) == before
            assert not (root / "reports" / f"{'0' * 10}.html").exists()
            assert not (root / "work" / DOWNLOADS / ("0" * 16)).exists()
            assert not list(root.glob("artifacts/*/*/half"))

    check()


@pytest.mark.parametrize("place", PLACES[1:])
def test_every_command_leaves_what_is_not_ours_in_a_remote_store(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIVISION_WORKDIR", str(tmp_path / "work"))
    uri = new_uri(place, tmp_path, request)
    store = ArtifactStore(uri, tmp_path / "cache")
    before: dict[str, bytes] = {}

    @settings(
        max_examples=6 if place == "memory" else 1, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(files=st.dictionaries(close_names(), st.binary(max_size=20), min_size=8, max_size=12))
    def check(files: Mapping[str, bytes]) -> None:
        fill(store, tmp_path / uuid.uuid4().hex)
        inside = f"{store.manifests('publish')[-1].folder}/of somebody"
        for name, data in {**files, inside: b"precious"}.items():
            store.files.write(name, data)
            before[name] = data
        assert run_all(uri)[:4] == ["", "", "", ""]
        assert {name: store.read(name) for name in before} == before
        survey = take_survey(store, tmp_path / "work", keep=0, grace=0.0)
        assert strangers(survey) == sorted(before)
        assert not store.list(f"artifacts/numbers/{'0' * 16}-{'0' * 8}")

    check()


@pytest.mark.parametrize("layout", ["of today", "without listings"])
def test_what_lies_among_the_files_of_an_artifact_stays(
    store: ArtifactStore, tmp_path: Path, layout: str
) -> None:
    made = add(store, tmp_path, FILES)
    if layout == "without listings":
        store.files.remove("attempts")
    names = (f"{made.folder}/notes.txt", f"{made.folder}/deep/notes.txt")
    for name in names:
        store.files.write(name, b"precious")
    for round_ in range(3):
        survey = take_survey(store, tmp_path / "work", keep=0, grace=-10.0)
        assert strangers(survey) == sorted(names)
        found = garbage_of(survey)
        assert [g.kind for g in found if g.kind != "note"] == (
            ["manifest", "attempt"] if round_ == 0 else []
        )
        assert sum(g.bytes for g in found) == (101 if round_ == 0 else 0)
        for garbage in found:
            garbage.remove()
    assert store.files.states(made.folder).keys() == {"notes.txt", "deep/notes.txt"}


def test_nothing_behind_a_link_is_touched(local: ArtifactStore, tmp_path: Path) -> None:
    root, work, away = tmp_path / "store", tmp_path / "store" / "work", tmp_path / "away"
    made = [add(local, tmp_path, FILES, payload(stage)) for stage in ("one", "two", "three")]
    gone = add(local, tmp_path, FILES, payload("four"))
    attempt, key = f"{'0' * 16}-{'0' * 8}", f"numbers-{'0' * 16}"
    local.write(f"artifacts/numbers/{attempt}/half", b"half")
    links = {
        f"artifacts/one/{made[0].attempt}": away / "attempt",
        "artifacts/two": away / "stage",
        f"{made[2].folder}/a.bin": away / "file",
        "leases": away / "leases",
        f"work/workspaces/{key}": away / "workspace",
        f"work/locks/{key}.lock": away / "lock",
        f"work/{DOWNLOADS}": away / "downloads",
        "refs/old": away / "ref",
    }
    (root / "leases").mkdir()
    away.mkdir()
    for name, target in links.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            shutil.move(path, target)
        elif "." in name or name.startswith("refs"):
            target.write_bytes(b"precious")
        else:
            target.mkdir()
        path.symlink_to(target)
    for name in (f"leases/{key}/00000001.json", "workspace/scratch/a", f"downloads/{'0' * 16}/a"):
        (away / name).parent.mkdir(parents=True, exist_ok=True)
        (away / name).write_bytes(b"precious")
        os.utime(away / name, (1000, 1000))
    before = {path: path.read_bytes() for path in away.rglob("*") if path.is_file()}
    run_all(str(root))
    assert {path: path.read_bytes() for path in away.rglob("*") if path.is_file()} == before
    assert all((root / name).is_symlink() for name in links)
    assert not list((root / gone.folder).glob("*"))
    assert not list(root.glob("artifacts/numbers/*/half"))
    survey = take_survey(local, work, keep=0, grace=-10.0)
    assert {*strangers(survey)} == {*links}


# -- the mark -------------------------------------------------------------------------------------


def test_a_store_is_marked_before_anything_is_written(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=NO_STORE):
        require_store(store.files)
    written: list[str] = []
    for method in ("write", "create", "put"):
        call = getattr(store.files, method)

        def note(*given: object, call=call) -> object:  # noqa: ANN001
            written.append(str(given[-1] if isinstance(given[0], Path) else given[0]))
            return call(*given)

        setattr(store.files, method, note)
    add(store, tmp_path, FILES)
    assert written[0] == MARK
    require_store(again(store, tmp_path / "other").files)


def test_a_store_from_before_there_were_marks_gets_one(
    store: ArtifactStore, tmp_path: Path
) -> None:
    made = add(store, tmp_path, FILES)
    for name in (MARK, "attempts"):
        store.files.remove(name)
    for folder in ("damaged", "elsewhere"):
        store.files.write(f"manifests/{folder}/{'0' * 64}.json", b"{}")  # proves nothing
    require_store(again(store, tmp_path / "other").files)
    assert store.read(MARK)
    for name in (MARK, f"manifests/numbers/{made.fingerprint}.json"):
        store.files.remove(name)
    with pytest.raises(StorageError, match=NO_STORE):
        require_store(store.files)


def test_many_first_writers_agree(store: ArtifactStore, tmp_path: Path) -> None:
    writers = [again(store, tmp_path / str(number)) for number in range(8)]
    barrier, failed = threading.Barrier(len(writers)), []

    def write(number: int) -> None:
        barrier.wait()
        try:
            writers[number].write(f"refs/writer{number}", b"0" * 10)
        except StorageError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(store.list("refs")) == len(writers)
    require_store(store.files)


def test_no_store_is_made_where_other_files_are_in_the_way(
    store: ArtifactStore, tmp_path: Path
) -> None:
    store.files.write("src/main.c", b"precious")  # in nobody's way
    store.files.write("reports/q3.pdf", b"precious")
    with pytest.raises(StorageError, match=r"holds other files, such as reports/q3\.pdf\n.*empty"):
        add(store, tmp_path, FILES)
    assert store.files.states("artifacts") == {}
    assert store.read(MARK) is None
    store.files.remove("reports/q3.pdf")
    add(store, tmp_path, FILES)
    require_store(store.files)
    assert store.read("src/main.c") == b"precious"


def test_a_file_that_bears_the_marks_name_is_no_mark(store: ArtifactStore, tmp_path: Path) -> None:
    for text in (b"", b"[1]", b'"phivision store"', b'{"format": "other", "layout": 1}', b"\xff"):
        store.files.write(MARK, text)
        with pytest.raises(StorageError, match=NO_STORE):
            require_store(store.files)
        with pytest.raises(StorageError, match="is not the mark of a phivision store"):
            add(store, tmp_path, FILES)
        assert store.read(MARK) == text


def test_a_layout_of_a_newer_version_is_left_alone(store: ArtifactStore, tmp_path: Path) -> None:
    add(store, tmp_path, FILES)
    store.files.write(MARK, b'{"format": "phivision store", "layout": 2}')
    with pytest.raises(StorageError, match=r"has layout 2, this phivision knows 1\n  → use the"):
        require_store(store.files)
    with pytest.raises(StorageError, match="has layout 2"):
        again(store, tmp_path / "other").write("refs/x", b"")


# -- empty settings -------------------------------------------------------------------------------


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_an_empty_variable_counts_as_unset(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHIVISION_PUBLISH_ANYWAY", raising=False)
    unset = Settings()
    monkeypatch.setenv(f"PHIVISION_{field.upper()}", "")
    assert Settings() == unset


@pytest.mark.parametrize("store", ["", " ", "file://"])
@pytest.mark.parametrize("command", ["gc", "runs", "plan"])
def test_an_empty_store_is_not_the_current_folder(
    store: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([command, "--store", store])
    assert end.value.code == 1
    assert "store" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
