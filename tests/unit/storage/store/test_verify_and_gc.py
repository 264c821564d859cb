"""verify and gc: what is damaged is found and marked, what nobody needs goes, nothing else."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from storage.errors import StorageError
from storage.features.shards import write_shard
from storage.store.artifacts import ArtifactStore
from storage.store.garbage import Garbage, garbage_of
from storage.store.leases import Pace, lease, presence
from storage.store.manifest import Manifest, UnknownManifestError
from storage.store.runs import next_number, read_refs, read_run, read_runs, write_ref
from storage.store.survey import DAY, is_busy, take_survey
from storage.store.verify import committed, verify
from storage.store.workspaces import Workspace, workspace_key
from tests.support.store_fixtures import add, again, flip, overwrite, payload, sealed
from tests.unit.storage.features.test_shards import made_rows

FILES = {"a.bin": bytes(3000), "deep/b.bin": b"b" * 100}
RUNS = ("0000000000", "1111111111", "2222222222")
NOBODY = f"{'0' * 16}-{'0' * 8}"  # an attempt that nobody made


def check(store: ArtifactStore) -> dict[str, dict[str, str]]:
    """Return the faults by stage."""
    known, hashed = committed(store), []
    found = verify(store, known, hashed.append)
    assert sum(hashed) <= known.bytes
    return {damage.stage: dict(damage.faults) for damage in found}


# -- verify -------------------------------------------------------------------------------------


def test_a_whole_store_is_whole(store: ArtifactStore, tmp_path: Path) -> None:
    add(store, tmp_path, FILES)
    add(store, tmp_path, FILES, payload("letters"))
    assert check(store) == {}
    assert committed(store).bytes == 6200


def test_each_kind_of_damage_is_named_and_marked(store: ArtifactStore, tmp_path: Path) -> None:
    made = {stage: add(store, tmp_path, FILES, payload(stage)) for stage in ("a", "b", "c", "d")}
    flip(store, f"{made['a'].folder}/a.bin", at=2999)
    overwrite(store, f"{made['b'].folder}/a.bin", b"short")
    store.files.remove(f"{made['c'].folder}/deep/b.bin")
    found = check(again(store, tmp_path / "other"))
    assert found == {
        "a": {"a.bin": "altered"},
        "b": {"a.bin": "5 bytes instead of 3000"},
        "c": {"deep/b.bin": "missing"},
    }
    fresh = again(store, tmp_path / "third")
    assert {stage: bool(fresh.damage(one)) for stage, one in made.items()} == {
        "a": True,
        "b": True,
        "c": True,
        "d": False,
    }


def test_a_damaged_shard_of_features_is_named(local: ArtifactStore, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for number in range(2):
        write_shard(folder, number, made_rows(3, seed=number), "encoder")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    at = files["patches-00001.parquet"].index(made_rows(3, seed=1).patches.tobytes()) + 7
    made = add(local, tmp_path, files, payload("features"))
    flip(local, f"{made.folder}/patches-00001.parquet", at=at)
    fault = check(local)["features"]["patches-00001.parquet"]
    assert fault.startswith("altered: shard 1: ")
    assert "CRC" in fault


def test_damage_outside_of_every_row_of_features_is_told_apart(
    local: ArtifactStore, tmp_path: Path
) -> None:
    write_shard(tmp_path / "shards", 0, made_rows(3, seed=0), "encoder")
    files = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    made = add(local, tmp_path, files, payload("features"))
    at = files["patches-00000.parquet"].index(b"parquet-cpp")  # the writer's name
    flip(local, f"{made.folder}/patches-00000.parquet", at=at)
    assert check(local)["features"] == {
        "patches-00000.parquet": "altered: shard 0: no row is damaged"
    }


def test_bits_that_rot_under_an_unchanged_state_are_found(
    local: ArtifactStore, tmp_path: Path
) -> None:
    made = add(local, tmp_path, FILES)
    path = local.files.path(f"{made.folder}/a.bin")  # ty: ignore[unresolved-attribute]
    state = path.stat()
    flip(local, f"{made.folder}/a.bin")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert local.damage(made) == ""
    assert check(local) == {"numbers": {"a.bin": "altered"}}
    assert local.damage(made) == "a.bin"
    with pytest.raises(StorageError, match="altered"):
        local.artifact(made).path("a.bin")


def test_what_is_whole_again_loses_its_mark(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    flip(store, f"{made.folder}/a.bin")
    assert check(store)
    flip(store, f"{made.folder}/a.bin")
    assert check(store) == {}
    assert store.damage(made) == ""


def test_a_damaged_manifest_is_reported(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    overwrite(store, f"manifests/numbers/{made.fingerprint}.json", b"{")
    (faults,) = check(store).values()
    assert "is not a manifest" in faults[""]


def test_what_was_made_again_meanwhile_is_not_marked(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    known = committed(store)
    store.files.remove(made.folder)
    newer = add(store, tmp_path, FILES, replace=True)
    assert verify(store, known, lambda _: None) == []
    assert store.damage(newer) == ""


def test_a_read_only_store_is_reported_all_the_same(local: ArtifactStore, tmp_path: Path) -> None:
    made = add(local, tmp_path, FILES)
    flip(local, f"{made.folder}/a.bin")
    (tmp_path / "store" / "damaged").write_bytes(b"in the way of every mark")
    assert check(local) == {"numbers": {"a.bin": "altered"}}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_bad_sector_is_damage(local: ArtifactStore, tmp_path: Path) -> None:
    made = add(local, tmp_path, {"a.bin": b""})
    path = local.files.path(f"{made.folder}/a.bin")  # ty: ignore[unresolved-attribute]
    path.unlink()
    path.symlink_to("/proc/self/mem")  # has size 0 and cannot be read
    assert "Input/output error" in check(local)["numbers"]["a.bin"]


def test_a_store_that_cannot_be_reached_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(f"memory://{tmp_path.name}", tmp_path / "cache")
    made = add(store, tmp_path, FILES)

    def fail(_: str) -> None:
        raise StorageError("no connection")

    monkeypatch.setattr(store.files, "chunks", fail)
    with pytest.raises(StorageError, match="no connection"):
        check(store)
    assert store.damage(made) == ""


def test_what_gc_removes_meanwhile_is_no_damage(store: ArtifactStore, tmp_path: Path) -> None:
    """It goes between the list of files and their hashing."""
    add(store, tmp_path, FILES)
    gone = add(store, tmp_path, FILES, payload("letters"))
    known = committed(store)
    chunks = store.files.chunks

    def remove_first(name: str) -> Iterator[bytes]:
        if gone.folder in name:
            store.files.remove(f"manifests/letters/{gone.fingerprint}.json")
            store.files.remove(gone.folder)
        return chunks(name)

    store.files.chunks = remove_first  # ty: ignore[invalid-assignment]
    assert verify(store, known, lambda _: None) == []


# -- gc -----------------------------------------------------------------------------------------


def chain(store: ArtifactStore, folder: Path, number: int) -> list[Manifest]:
    """Commit three stages, each made from the one before, and record them as a run."""
    made: list[Manifest] = []
    for stage in ("images", "pretrain", "publish"):
        inputs = {made[-1].stage: made[-1].digest} if made else {}
        what = payload(stage, inputs=inputs, code={"n": str(number)})
        made.append(add(store, folder, {f"{stage}.bin": b"%d" % number}, what))
    return made


def record(
    store: ArtifactStore, name: str, made: list[Manifest], created: float, **more: Any
) -> None:
    stages = {m.stage: {"fingerprint": m.fingerprint, "digest": m.digest} for m in made}
    body = {"run": name, "created": created, "stages": stages, "made": [], "recipe": {}, **more}
    store.write(f"runs/{name}.json", json.dumps(body).encode())


def later(store: ArtifactStore, work: Path, keep: int = 1, **changes: Any) -> list[Garbage]:
    return garbage_of(take_survey(store, work, **{"keep": keep, "grace": -10.0, **changes}))


def sweep(garbage: list[Garbage]) -> None:
    for one in garbage:
        one.remove()


def alive(store: ArtifactStore, made: list[Manifest]) -> list[bool]:
    return [store.find(m.stage, m.fingerprint) is not None and not store.damage(m) for m in made]


def test_what_recent_runs_reach_stays_and_the_rest_goes(
    store: ArtifactStore, tmp_path: Path
) -> None:
    runs = [chain(store, tmp_path, number) for number in range(4)]
    for number, made in enumerate(runs[:3]):
        record(store, RUNS[number], made, created=1000.0 + number)
    write_ref(store, "paper", RUNS[0])
    found = later(store, tmp_path / "work", keep=1)
    assert [garbage.kind for garbage in found] == ["manifest"] * 3 + ["attempt"] * 3
    sweep(found)
    # the second is neither recent nor named; the last chain has no record but the newest publish
    assert [alive(store, made) for made in runs] == [
        [True] * 3,
        [False] * 3,
        [True] * 3,
        [True] * 3,
    ]
    assert later(store, tmp_path / "work", keep=1) == []
    assert check(store) == {}


def test_what_was_made_or_used_lately_stays_with_all_that_went_into_it(
    store: ArtifactStore, tmp_path: Path
) -> None:
    made = chain(store, tmp_path, 1)
    chain(store, tmp_path, 2)
    assert later(store, tmp_path, keep=0, grace=DAY) == []
    found = later(store, tmp_path, keep=0)
    assert len(found) == 6
    # A run that is not recorded yet comes back to an old artifact between look and removal.
    body = json.dumps({"used": time.time() + 100}).encode()
    store.write(f"used/pretrain/{made[1].fingerprint}.json", body)
    sweep(found)
    assert store.find("pretrain", made[1].fingerprint) is not None
    assert store.damage(made[1]) == ""
    assert [g.name for g in later(store, tmp_path, keep=0)] == []


def test_an_orphan_goes_when_it_is_old(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    orphan = f"artifacts/numbers/{'f' * 16}-0123abcd"
    store.write(f"{orphan}/half.bin", bytes(500))
    assert later(store, tmp_path, grace=DAY) == []
    (found,) = [g for g in later(store, tmp_path, keep=0) if g.name == orphan]
    assert (found.kind, found.bytes) == ("attempt", 500)
    found.remove()
    assert store.list("artifacts/numbers") == [made.folder]


def test_what_was_replaced_lately_stays_for_who_still_reads_it(
    local: ArtifactStore, tmp_path: Path
) -> None:
    old = add(local, tmp_path, FILES)
    for path in (tmp_path / "store" / old.folder).rglob("*"):
        os.utime(path, (1000, 1000))
    os.utime(tmp_path / "store" / old.folder, (1000, 1000))
    add(local, tmp_path, FILES, replace=True)
    assert later(local, tmp_path, grace=DAY) == []
    assert old.folder in {g.name for g in later(local, tmp_path, keep=0)}


def test_files_of_a_damaged_manifest_go_only_after_it(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    name = f"manifests/numbers/{made.fingerprint}.json"
    record(store, RUNS[0], [made], created=1.0)
    overwrite(store, name, b"{")
    assert later(store, tmp_path) == []  # the run's next repetition makes it again
    assert later(store, tmp_path, keep=0, grace=DAY) == []
    (found,) = later(store, tmp_path, keep=0)
    assert found.name == name
    add(store, tmp_path, FILES, replace=True)
    found.remove()  # made again meanwhile
    assert store.find("numbers", made.fingerprint) is not None
    overwrite(store, name, b"{")
    sweep(later(store, tmp_path, keep=0))
    assert store.list("manifests/numbers") == []
    sweep(later(store, tmp_path, keep=0))
    assert store.list("artifacts/numbers") == []


def test_a_store_of_a_newer_version_is_left_alone(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    overwrite(store, f"manifests/numbers/{made.fingerprint}.json", sealed({"manifest": 2}))
    with pytest.raises(UnknownManifestError):
        later(store, tmp_path, keep=0)


def test_an_adopted_artifact_keeps_the_files_it_shares(
    store: ArtifactStore, tmp_path: Path
) -> None:
    from storage.store.commits import publish

    old = add(store, tmp_path, FILES)
    new = old.model_copy(update={"fingerprint": "e" * 64, "accepted": old.fingerprint})
    publish(store, new, warn=pytest.fail)
    record(store, RUNS[0], [new], created=1.0)
    found = later(store, tmp_path)
    assert [g.kind for g in found] == ["manifest"]
    sweep(found)
    assert alive(store, [old, new]) == [False, True]
    flip(store, f"{new.folder}/a.bin")
    assert check(store) == {"numbers": {"a.bin": "altered"}}


def test_dead_leases_and_notes_about_nothing_go(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    store.mark_damaged(made, ["a.bin"])
    store.write(f"used/numbers/{made.fingerprint}.json", b'{"used": 5}')
    notes = (
        f"attempts/numbers/{NOBODY}.json",
        f"damaged/numbers/{NOBODY}.json",
        f"used/numbers/{'0' * 64}.json",
    )
    for note in notes:
        store.write(note, b"{}")
    old = {"owner": "x", "beat": time.time() - 2 * DAY, "done": False}
    dead, young, mixed = (f"leases/numbers-{digit * 16}" for digit in "012")
    store.write(f"{dead}/00000003.json", json.dumps(old).encode())
    store.write(f"{young}/00000001.json", json.dumps({**old, "beat": time.time()}).encode())
    store.write(f"{mixed}/00000001.json", json.dumps(old).encode())
    store.write(f"{mixed}/readme.txt", b"")
    found = later(store, tmp_path, grace=DAY)
    assert {g.name for g in found} == {dead, mixed, *notes[1:]}  # a listing comes before its files
    sweep(found)
    assert store.damage(made) == "a.bin"
    assert store.list("leases") == [young, mixed]
    assert store.list(mixed) == [f"{mixed}/readme.txt"]


def test_a_listing_of_files_that_never_came_goes_when_it_is_old(
    store: ArtifactStore, tmp_path: Path
) -> None:
    listing = f"attempts/numbers/{NOBODY}.json"
    store.write(listing, b'{"files": ["a"]}')
    assert later(store, tmp_path, grace=DAY) == []
    found = later(store, tmp_path)
    assert [g.name for g in found] == [listing]
    store.write(f"artifacts/numbers/{NOBODY}/a", b"a")  # just now
    sweep(found)
    assert store.list("attempts/numbers") == [listing]
    store.files.remove(f"artifacts/numbers/{NOBODY}")
    sweep(found)
    assert store.list("attempts/numbers") == []


def test_reports_of_runs_that_are_gone_go(store: ArtifactStore, tmp_path: Path) -> None:
    here, gone, returns = RUNS
    record(store, here, [], created=1.0)
    for name in (here, gone, "dataset", returns):
        store.write(f"reports/{name}.html", b"<p>")
    found = later(store, tmp_path)
    assert [g.name for g in found] == [f"reports/{gone}.html", f"reports/{returns}.html"]
    record(store, returns, [], created=2.0)
    sweep(found)
    names = [name.removeprefix("reports/") for name in store.list("reports")]
    assert names == [f"{here}.html", f"{returns}.html", "dataset.html"]


def test_a_mark_of_files_that_have_come_meanwhile_stays(
    store: ArtifactStore, tmp_path: Path
) -> None:
    mark = f"damaged/numbers/{NOBODY}.json"
    store.write(mark, b'{"files": ["a"]}')
    found = later(store, tmp_path)
    assert [g.name for g in found] == [mark]
    store.write(f"artifacts/numbers/{NOBODY}/a", b"a")
    sweep(found)
    assert store.list("damaged/numbers") == [mark]


def test_what_was_committed_since_the_look_keeps_its_files(
    store: ArtifactStore, tmp_path: Path
) -> None:
    """Its files were uploaded when gc looked, and its manifest came just after."""
    made = add(store, tmp_path, FILES)
    name = f"manifests/numbers/{made.fingerprint}.json"
    text = store.read(name)
    assert text is not None
    store.files.remove(name)
    found = later(store, tmp_path, keep=0)
    assert [g.name for g in found if g.kind == "attempt"] == [made.folder]
    note = f"used/numbers/{made.fingerprint}.json"
    store.write(note, b'{"used": 5}')
    found += later(store, tmp_path, keep=0)
    for there in (b"{torn", text):
        store.write(name, there)
        sweep(found)
        assert store.damage(made) == ""
        assert store.read(note) is not None
    assert alive(store, [made]) == [True]


def test_what_a_run_needs_that_began_since_the_look_stays(
    store: ArtifactStore, tmp_path: Path
) -> None:
    made = chain(store, tmp_path, 1)
    chain(store, tmp_path, 2)  # its newest assistant is kept
    work = tmp_path / "work"
    found = later(store, work, keep=0)
    assert [g.kind for g in found] == ["manifest"] * 3 + ["attempt"] * 3
    with presence(store, work / "locks"):
        sweep(found[:1])
        assert alive(store, made) == [True] * 3
    sweep(found[:3])
    with presence(store, work / "locks"):
        sweep(found[3:])
    assert [store.damage(one) for one in made] == [""] * 3


def test_a_run_that_is_there_is_seen_between_two_stages(
    store: ArtifactStore, tmp_path: Path
) -> None:
    add(store, tmp_path, FILES)
    work = tmp_path / "work"
    other = again(store, tmp_path / "elsewhere")
    with presence(store, work / "locks"), presence(store, work / "locks"):
        assert is_busy(other, work)
        assert is_busy(other, tmp_path / "elsewhere") is not store.local
        assert later(store, work, keep=0) == []
    assert not is_busy(other, work)
    assert store.list("leases") == list((work / "locks").iterdir()) == []


def test_a_run_on_a_store_that_cannot_be_written_goes_on(
    local: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "locks").write_bytes(b"in the way")
    with presence(local, tmp_path / "locks"):
        pass


def test_what_is_known_of_files_that_are_gone_goes(local: ArtifactStore, tmp_path: Path) -> None:
    made = add(local, tmp_path, FILES)
    add(local, tmp_path, FILES, replace=True)
    local.files.remove(made.folder)
    (found,) = later(local, tmp_path, grace=DAY)
    assert found.name == f"stamps/{made.attempt}"
    found.remove()
    assert len(local.stamps.keys()) == 1


def test_rests_of_killed_writes_go(local: ArtifactStore, tmp_path: Path) -> None:
    add(local, tmp_path, FILES)
    ages = {
        f"runs/.{RUNS[0]}.json.01234567.tmp": 2 * DAY,
        f"runs/.{RUNS[1]}.json.01234567.tmp": 0.0,
        "runs/.draft.txt.01234567.tmp": 2 * DAY,  # no name of ours
        ".probe.01234567.tmp": 2 * DAY,
    }
    for name, age in ages.items():
        local.write(name, b"half")
        os.utime(tmp_path / "store" / name, (time.time() - age, time.time() - age))
    sweep(later(local, tmp_path, grace=DAY))
    left = [name for name in ages if (tmp_path / "store" / name).exists()]
    assert left == [*ages][1:3]


def workspace(work: Path, key: str, *, old: bool = False) -> Path:
    path = work / "workspaces" / key
    (path / "scratch").mkdir(parents=True)
    (path / "scratch" / "shard").write_bytes(bytes(100))
    if old:
        for each in (path / "scratch" / "shard", path / "scratch", path):
            os.utime(each, (1000, 1000))
    return path


def test_workspaces_go_when_done_or_old_but_never_under_a_lock(
    local: ArtifactStore, tmp_path: Path
) -> None:
    made = add(local, tmp_path, FILES)
    work = tmp_path / "work"
    done = workspace(work, f"numbers-{made.fingerprint[:16]}")
    old = workspace(work, "numbers-0000000000000000", old=True)
    young = workspace(work, "numbers-1111111111111111")
    busy = workspace(work, "numbers-2222222222222222", old=True)
    locks = work / "locks"
    locks.mkdir()
    (locks / f"{old.name}.lock").touch()
    with FileLock(locks / f"{busy.name}.lock"):
        assert is_busy(local, work)
        found = later(local, work, grace=DAY)
        assert {g.name for g in found} == {str(done), str(old)}
        assert {g.bytes for g in found} == {100}
        sweep(found)
        assert not done.exists()
        assert not old.exists()
        assert busy.exists()
    assert young.exists()
    assert not is_busy(local, work)
    (found,) = later(local, work, grace=DAY)
    with FileLock(locks / f"{busy.name}.lock"):
        found.remove()  # a run has come back to it meanwhile
    assert busy.exists()


def test_a_workspace_whose_lock_file_is_gone_is_locked_while_it_goes(
    local: ArtifactStore, tmp_path: Path
) -> None:
    """A run that comes back to it waits at the lock, and begins with nothing."""
    work = tmp_path / "work"
    local.claim()
    old = workspace(work, "numbers-0000000000000000", old=True)
    (found,) = later(local, work, grace=DAY)
    with FileLock(work / "locks" / f"{old.name}.lock"):
        found.remove()
        assert old.exists()
    (old / "scratch" / "shard").write_bytes(b"new")
    found.remove()
    assert old.exists()  # a run came back to it and was killed again
    os.utime(old / "scratch" / "shard", (1000, 1000))
    found.remove()
    assert not old.exists()


def test_the_work_of_a_killed_re_making_stays_for_a_while(
    local: ArtifactStore, tmp_path: Path
) -> None:
    made = add(local, tmp_path, FILES)
    work = tmp_path / "work"
    space = Workspace(work, workspace_key("numbers", made.fingerprint), exclusive=True)
    space.open(made.attempt, force=True)
    assert later(local, work, grace=DAY) == []
    add(local, tmp_path, FILES, replace=True)  # it was made again, and the rest stayed
    (found,) = later(local, work, grace=DAY)
    assert found.name == str(space.path)


def test_a_workspace_without_a_lock_stays_for_a_week(local: ArtifactStore, tmp_path: Path) -> None:
    made = add(local, tmp_path, FILES)
    work = tmp_path / "work"
    space = Workspace(work, workspace_key("numbers", made.fingerprint), exclusive=False)
    space.open(None, force=False)
    assert "workspace" not in {g.kind for g in later(local, work)}
    for path in (space.out, space.scratch, space.path):
        os.utime(path, (time.time() - 8 * DAY,) * 2)
    (found,) = [g for g in later(local, work) if g.kind == "workspace"]
    found.remove()
    assert not space.path.exists()


def test_beside_a_running_pipeline_a_week_of_use_stays(
    store: ArtifactStore, tmp_path: Path
) -> None:
    add(store, tmp_path, FILES)
    work = tmp_path / "work"
    with lease(store, work / "locks", "pretrain-0000000000000000", say=print, pace=Pace(beat=0.1)):
        assert is_busy(store, work)
        assert later(store, work, keep=0) == []
    assert len(later(store, work, keep=0)) == 2


def test_a_lock_folder_that_cannot_be_read_is_one_clear_line(
    local: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "locks" / "numbers-0000000000000000.lock").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot lock"):
        is_busy(local, tmp_path)


# -- run records --------------------------------------------------------------------------------


def test_runs_come_newest_first(store: ArtifactStore) -> None:
    for name, created in zip(RUNS, (5.0, 9.0, 7.0), strict=True):
        record(store, name, [], created)
    store.write("runs/notes.txt", b"")
    store.write("runs/notes.json", b"")
    assert [run["run"] for run in read_runs(store)] == [RUNS[1], RUNS[2], RUNS[0]]
    assert read_run(store, "none") is None
    write_ref(store, "paper", RUNS[1])
    store.write("refs/notes.txt", b"of somebody else")
    assert read_refs(store) == {"paper": RUNS[1]}
    with pytest.raises(StorageError, match=r"refs/notes\.txt does not refer to a run"):
        write_ref(store, "notes.txt", RUNS[1])
    assert store.read("refs/notes.txt") == b"of somebody else"


def test_runs_come_in_the_order_of_their_records_whatever_the_clocks_said(
    store: ArtifactStore,
) -> None:
    assert next_number(store) == 1
    first, second, third, old, torn = (letter * 10 for letter in "abcde")
    for name, number, created in ((second, 2, 1.0), (third, 3, 0.0), (first, 1, 99.0)):
        record(store, name, [], created, number=number)
    record(store, old, [], 50.0)  # of before there were numbers
    assert [run["run"] for run in read_runs(store)] == [third, second, first, old]
    store.write(f"runs/{torn}.json", b"{")
    assert next_number(store) == 4


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"created": "x", "stages": {}}', b'{"created": 1, "stages": [1]}']
)
def test_a_record_that_is_none_is_named(store: ArtifactStore, body: bytes) -> None:
    store.write(f"runs/{RUNS[0]}.json", body)
    with pytest.raises(StorageError, match=r"runs/0000000000\.json is not the record of a run"):
        read_runs(store)
