"""The artifact store: one suite on a folder, on `memory://` and on S3 over HTTP."""

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.store.commits import commit, publish, scan
from storage.store.manifest import DamagedManifestError, UnknownManifestError, fingerprint_of
from tests.support.store_fixtures import (
    NOTHING,
    add,
    again,
    flip,
    overwrite,
    payload,
    sealed,
)

FILES = {"table.parquet": b"PAR1" * 1000, "lm/config.json": b"{}", "lm/deep/w.bin": bytes(5000)}


def key(stage: str = "numbers", **changes: object) -> str:
    return fingerprint_of(payload(stage, **changes))


# -- what is committed comes back ---------------------------------------------------------------


def test_an_empty_store_holds_nothing(store: ArtifactStore) -> None:
    assert store.find("numbers", key()) is None
    assert store.manifests("numbers") == []
    assert store.list("manifests") == []
    assert store.read("runs/x.json") is None


def test_files_come_back_as_they_were(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    found = store.find("numbers", key())
    assert found == made
    artifact = again(store, tmp_path / "elsewhere").artifact(found)
    assert artifact.names == sorted(FILES)
    assert {name: artifact.path(name).read_bytes() for name in artifact.names} == FILES
    assert artifact.paths("*.json") == []  # not those in a folder
    assert [path.name for path in artifact.paths("lm/*.json")] == ["config.json"]
    folder = artifact.directory("lm")
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "deep" / "w.bin").is_file()
    assert store.damage(made) == ""


def test_a_commit_tells_of_every_byte_twice(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    sizes = {"a.bin": 9 * 2**20, "b.bin": 1000}  # hashed piece by piece
    for name, size in sizes.items():
        (tmp_path / "out" / name).write_bytes(bytes(size))
    told: list[int] = []
    commit(store, tmp_path / "out", payload(), key(), NOTHING, warn=print, advance=told.append)
    assert sum(told) == 2 * sum(sizes.values())
    assert len(told) > 2 * len(sizes)


def test_a_file_or_folder_that_is_not_there_is_named(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = store.artifact(add(store, tmp_path, FILES))
    with pytest.raises(StorageError, match=r"no file other\.bin\n  → it holds: lm/config"):
        artifact.path("other.bin")
    with pytest.raises(StorageError, match="no directory clip"):
        artifact.directory("clip")


def test_equal_content_has_equal_digests_and_another_attempt(
    store: ArtifactStore, tmp_path: Path
) -> None:
    one = add(store, tmp_path, FILES, payload(code={"a": "1"}))
    two = add(store, tmp_path, FILES, payload(code={"a": "2"}))
    assert one.digest == two.digest
    assert one.attempt != two.attempt
    assert [m.fingerprint for m in store.manifests("numbers")] == [
        two.fingerprint,
        one.fingerprint,
    ]


def test_a_stage_that_wrote_nothing_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="wrote no file"):
        add(store, tmp_path, {})
    assert store.list("artifacts") == []


def test_odd_file_names_are_refused(local: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="control character"):
        add(local, tmp_path, {"a\nb": b"x"})


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a").symlink_to("/proc/self/mem")
    with pytest.raises(StorageError, match="cannot read"):
        scan(folder)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_committed_file_that_cannot_be_read_is_named(
    local: ArtifactStore, tmp_path: Path
) -> None:
    made = add(local, tmp_path, {"a.bin": b""})
    path = tmp_path / "store" / made.folder / "a.bin"
    path.unlink()
    path.symlink_to("/proc/self/mem")  # has size 0 and cannot be read
    with pytest.raises(StorageError, match=r"cannot read .*a\.bin: Input/output error"):
        local.artifact(made).path("a.bin")


# -- two at once, and again ---------------------------------------------------------------------


def test_of_two_commits_the_first_one_stands(store: ArtifactStore, tmp_path: Path) -> None:
    told: list[str] = []
    first = add(store, tmp_path, FILES, warn=told.append)
    second = add(again(store, tmp_path / "b"), tmp_path, FILES, warn=told.append)
    assert second == first
    assert store.list("artifacts/numbers") == [first.folder]
    assert told == []


def test_a_stage_that_is_not_deterministic_is_told_and_the_first_result_stays(
    store: ArtifactStore, tmp_path: Path
) -> None:
    told: list[str] = []
    first = add(store, tmp_path, {"a": b"1"})
    second = add(store, tmp_path, {"a": b"2"}, warn=told.append)
    assert second == first
    assert len(told) == 1
    assert "numbers is not deterministic" in told[0]


def test_what_computed_two_digests_is_told_beside_them(
    store: ArtifactStore, tmp_path: Path
) -> None:
    told: list[str] = []
    for threads in ("1", "2"):
        how = replace(NOTHING, machine={"threads": threads, "device": "cpu"})
        made = add(store, tmp_path, {"a": threads.encode()}, provenance=how, warn=told.append)
    assert made.machine == {"threads": "1", "device": "cpu"}
    assert "(device cpu, threads 1) before and" in told[0]
    assert told[0].endswith("(device cpu, threads 2) now")


def test_a_replacement_takes_the_place_and_records_what_differed(
    store: ArtifactStore, tmp_path: Path
) -> None:
    told: list[str] = []
    first = add(store, tmp_path, {"a": b"1"})
    second = add(store, tmp_path, {"a": b"2"}, replace=True, warn=told.append)
    assert store.find("numbers", key()) == second
    assert second.replaced == first.digest
    assert "not deterministic" in told[0]
    third = add(store, tmp_path, {"a": b"2"}, replace=True, warn=told.append)
    assert (third.replaced, len(told)) == ("", 1)


def test_many_at_once_end_with_one_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    stands: list[str] = []

    def work(number: int) -> None:
        one = again(store, tmp_path / f"c{number}")
        stands.append(add(one, tmp_path / f"w{number}", FILES).attempt)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.find("numbers", key())
    assert found is not None
    assert set(stands) == {found.attempt}
    assert store.list("artifacts/numbers") == [found.folder]


def test_a_lost_acknowledgement_is_no_conflict(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    # The same manifest once more, as a library does that never heard of its success.
    assert publish(store, made, warn=pytest.fail) == made
    assert store.damage(made) == ""


# -- damage -------------------------------------------------------------------------------------


def test_a_missing_file_is_seen_at_a_glance(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    store.files.remove(f"{made.folder}/lm/deep/w.bin")
    assert store.damage(made) == "lm/deep/w.bin is missing"
    with pytest.raises(
        StorageError, match=r"w\.bin is missing\n  → `phivision run` makes it again"
    ):
        again(store, tmp_path / "e").artifact(made).path("lm/deep/w.bin")


def test_a_missing_folder_is_seen_at_a_glance(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    store.files.remove(made.folder)
    assert store.damage(made).endswith("is missing")


def test_a_truncated_file_is_seen_at_a_glance(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    overwrite(store, f"{made.folder}/table.parquet", b"PAR1")
    assert store.damage(made) == "table.parquet has 4 bytes instead of 4000"
    with pytest.raises(StorageError, match="has 4 bytes instead of 4000"):
        again(store, tmp_path / "e").artifact(made).path("table.parquet")


def test_a_flipped_bit_is_never_served_and_the_artifact_is_marked(
    store: ArtifactStore, tmp_path: Path
) -> None:
    made = add(store, tmp_path, FILES)
    flip(store, f"{made.folder}/table.parquet", at=999)
    other = again(store, tmp_path / "e")
    with pytest.raises(StorageError, match=r"numbers in .* is damaged: table\.parquet was altered"):
        other.artifact(made).path("table.parquet")
    assert again(store, tmp_path / "f").damage(made) == "table.parquet"


def test_a_flipped_bit_on_this_disk_is_seen_at_a_glance(
    local: ArtifactStore, tmp_path: Path
) -> None:
    made = add(local, tmp_path, FILES)
    flip(local, f"{made.folder}/table.parquet")
    assert local.damage(made) == "table.parquet was altered"


def test_a_touched_or_copied_file_is_whole(local: ArtifactStore, tmp_path: Path) -> None:
    made = add(local, tmp_path, FILES)
    os.utime(local.files.path(f"{made.folder}/table.parquet"))  # ty: ignore
    assert local.damage(made) == ""


def test_a_mark_is_about_one_attempt(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    store.mark_damaged(made, ["table.parquet", "lm/config.json"])
    assert store.damage(made) == "table.parquet, lm/config.json"
    newer = add(store, tmp_path, FILES, replace=True)
    assert store.damage(newer) == ""
    assert store.damage(made) != ""
    store.clear_mark(made)
    store.clear_mark(made)
    assert store.damage(made) == ""


@pytest.mark.parametrize("mark", [b"", b"{}", b"[]", b'{"files": 3}'])
def test_a_torn_mark_still_marks(local: ArtifactStore, tmp_path: Path, mark: bytes) -> None:
    made = add(local, tmp_path, FILES)
    local.write(f"damaged/numbers/{made.attempt}.json", mark)
    assert local.damage(made) == "it was marked as damaged"


def test_a_corrupt_manifest_is_named_and_can_be_replaced(
    store: ArtifactStore, tmp_path: Path
) -> None:
    add(store, tmp_path, FILES)
    name = f"manifests/numbers/{key()}.json"
    overwrite(store, name, (store.read(name) or b"")[:-20])
    with pytest.raises(DamagedManifestError, match=r"is not a manifest\n  → `phivision run`"):
        store.find("numbers", key())
    assert store.manifests("numbers") == []
    made = add(store, tmp_path, FILES)
    assert store.find("numbers", key()) == made


def test_a_flipped_bit_in_a_manifest_is_noticed(store: ArtifactStore, tmp_path: Path) -> None:
    add(store, tmp_path, FILES)
    name = f"manifests/numbers/{key()}.json"
    data = store.read(name) or b""
    flip(store, name, at=data.index(b'"seconds"') + 11)
    with pytest.raises(DamagedManifestError, match="checksum"):
        store.find("numbers", key())


def test_an_unknown_schema_is_left_alone(store: ArtifactStore, tmp_path: Path) -> None:
    add(store, tmp_path, FILES)
    name = f"manifests/numbers/{key()}.json"
    body = json.loads(store.read(name) or b"") | {"manifest": 99}
    overwrite(store, name, sealed(body))
    with pytest.raises(UnknownManifestError, match="schema 99"):
        store.find("numbers", key())
    with pytest.raises(UnknownManifestError):
        add(store, tmp_path, FILES)
    assert json.loads(store.read(name) or b"")["manifest"] == 99
    assert isinstance(store.entries("numbers")[key()], UnknownManifestError)


def test_files_that_are_no_manifests_are_passed_over(local: ArtifactStore, tmp_path: Path) -> None:
    made = add(local, tmp_path, FILES)
    local.write(f"manifests/numbers/.{key()}.json.1234.tmp", b"{")
    assert local.manifests("numbers") == [made]


def test_an_upload_that_did_not_arrive_whole_stays_invisible(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = type(store.files).put

    def lossy(self: object, source: Path, name: str) -> None:
        if not name.endswith("w.bin"):
            put(self, source, name)  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(type(store.files), "put", lossy)
    with pytest.raises(StorageError, match=r"w\.bin arrived incomplete"):
        add(store, tmp_path, FILES)
    assert store.find("numbers", key()) is None
    assert store.list("artifacts/numbers") == []


# -- use, secrets, places that refuse -----------------------------------------------------------


def test_a_use_is_written_down_once_in_a_while(store: ArtifactStore, tmp_path: Path) -> None:
    made = add(store, tmp_path, FILES)
    store.note_use(made)
    assert store.list("used") == []  # it was made a moment ago
    old = made.model_copy(update={"created": 5.0})
    assert store.last_use(old) == 5.0
    store.note_use(old)
    used = store.last_use(old)
    assert used > 1e9
    store.note_use(old)
    assert store.last_use(old) == used
    store.write(f"used/numbers/{key()}.json", b"torn")
    assert store.last_use(old) == 5.0


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:s3cret@bucket/x",
        "sftp://me:s3cret@host/x",
        "sftp://me@home:s3cret@host/x",
        "memory://a:s3cret@b",
        "https://host/store?X-Amz-Signature=s3cret",
        "abfs://box/store?sv=2024&sig=s3cret",
    ],
)
def test_a_password_in_the_address_is_refused_and_not_repeated(uri: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="has a secret in its address") as caught:
        ArtifactStore(uri, tmp_path)
    assert "s3cret" not in str(caught.value)


def test_credentials_of_the_environment_reach_no_manifest(
    s3: ArtifactStore, tmp_path: Path
) -> None:
    made = add(s3, tmp_path, FILES, provenance=replace(NOTHING, summary={"rows": 1}))
    s3.mark_damaged(made, ["table.parquet"])
    with pytest.raises(StorageError) as caught:
        ArtifactStore("s3://no-such-bucket-here/x", tmp_path).write("a", b"x")
    texts = [str(caught.value).encode()]
    for folder in ("manifests/numbers", "damaged/numbers"):
        texts += [s3.read(name) or b"" for name in s3.list(folder)]
    assert len(texts) == 3
    assert not any(b"of-nobody" in text for text in texts)


def test_an_unknown_scheme_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open nope://x"):
        ArtifactStore("nope://x", tmp_path)


@pytest.mark.parametrize("scheme", ["file://", "local://", ""])
def test_a_local_store_has_three_spellings(scheme: str, tmp_path: Path) -> None:
    store = ArtifactStore(f"{scheme}{tmp_path}/s", tmp_path / "cache")
    assert store.local
    store.write("runs/x.json", b"1")
    assert (tmp_path / "s" / "runs" / "x.json").read_bytes() == b"1"


def test_a_read_only_store_can_be_read(tmp_path: Path) -> None:
    """A folder whose parent is a file refuses every write, whoever asks."""
    store = ArtifactStore(str(tmp_path / "s"), tmp_path / "cache")
    made = add(store, tmp_path, FILES)
    (tmp_path / "file").write_bytes(b"")
    reader = ArtifactStore(str(tmp_path / "s"), tmp_path / "file" / "cache")
    assert reader.artifact(made).path("table.parquet").read_bytes() == FILES["table.parquet"]
    for folder in ("used", "damaged"):
        (tmp_path / "s" / folder).write_bytes(b"in the way")
    reader.note_use(made.model_copy(update={"created": 0.0}))
    flip(store, f"{made.folder}/table.parquet")
    with pytest.raises(StorageError, match=r"altered|Not a directory"):
        reader.artifact(made).path("table.parquet")


def test_a_store_tells_whether_it_can_be_written(store: ArtifactStore, tmp_path: Path) -> None:
    assert store.is_writable()
    assert not store.list("")
    (tmp_path / "file").write_bytes(b"")
    assert not ArtifactStore(str(tmp_path / "file"), tmp_path / "cache").is_writable()


def test_a_folder_that_cannot_be_walked_is_named(local: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "round").symlink_to("round")
    with pytest.raises(StorageError, match=r"cannot list .*round"):
        local.files.states("round")


def test_a_store_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"")
    store = ArtifactStore(str(tmp_path / "s"), tmp_path / "cache")
    with pytest.raises(StorageError, match=r"cannot read .*Not a directory"):
        store.find("numbers", key())
    with pytest.raises(StorageError, match="cannot list"):
        store.list("manifests")
    with pytest.raises(StorageError, match="cannot write"):
        add(store, tmp_path, FILES)


def test_a_missing_bucket_is_named_before_hours_of_work(tmp_path: Path, s3_server: str) -> None:
    store = ArtifactStore("s3://no-such-bucket-here/x", tmp_path / "cache")
    with pytest.raises(StorageError, match="no such bucket"):
        store.write("leases/x.json", b"{}")
