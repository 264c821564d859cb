"""What is asked of many objects at once is what each would say by itself, at every place."""

import os
from collections import Counter
from pathlib import Path

import pytest

from storage.store.artifacts import ArtifactStore
from storage.store.garbage import garbage_of
from storage.store.listings import last_uses, marked_attempts, states_by_folder
from storage.store.survey import take_survey
from storage.store.verify import committed, verify
from tests.support.store_fixtures import add, payload

FILES = {"a.txt": b"a", "below/b.txt": b"bb"}


def test_folders_are_listed_as_one_by_one(store: ArtifactStore, tmp_path: Path) -> None:
    made = [
        add(store, tmp_path, {**FILES, f"{n}.txt": b"n" * n}, payload(stage, recipe={"seed": n}))
        for n, stage in enumerate(("numbers", "numbers", "letters"))
    ]
    folders = [*(manifest.folder for manifest in made), "artifacts/numbers/none"]
    listed = states_by_folder(store, folders)
    assert listed == {folder: store.files.states(folder) for folder in folders}
    assert set(listed[made[1].folder]) == {*FILES, "1.txt"}


def test_uses_and_marks_are_those_of_each_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    made = [add(store, tmp_path, FILES, payload(recipe={"seed": n})) for n in range(3)]
    old = [manifest.model_copy(update={"created": 5.0}) for manifest in made]
    store.note_use(old[1])
    store.mark_damaged(made[2], ["a.txt"])
    assert last_uses(store, old) == [store.last_use(manifest) for manifest in old]
    assert last_uses(store, old)[1] > 1e9
    assert marked_attempts(store, {"numbers", "letters"}) == {made[2].attempt}


def test_the_newest_manifests_are_those_written_last(local: ArtifactStore, tmp_path: Path) -> None:
    made = [add(local, tmp_path, FILES, payload(recipe={"seed": n})) for n in range(4)]
    for number, manifest in enumerate(made):
        path = tmp_path / f"store/manifests/numbers/{manifest.fingerprint}.json"
        os.utime(path, (1000 + number, 1000 + number))
    assert local.manifests("numbers", 2) == [made[3], made[2]]
    assert local.manifests("numbers", 4) == local.manifests("numbers")


@pytest.mark.s3
def test_requests_for_lists_do_not_grow_with_artifacts(
    s3: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs import S3FileSystem

    counts: Counter[str] = Counter()
    original = S3FileSystem._call_s3

    async def counted(self: S3FileSystem, method: str, *args: object, **more: object) -> object:
        counts[method] += 1
        return await original(self, method, *args, **more)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    lists = []
    for start in (0, 3):
        for number in range(start, start + 3):
            add(s3, tmp_path, FILES, payload(recipe={"seed": number}))
        counts.clear()
        assert verify(s3, committed(s3), lambda _: None) == []
        assert garbage_of(take_survey(s3, tmp_path / "work", keep=1, grace=0.0))
        lists.append(counts["list_objects_v2"])
    assert lists[0] == lists[1]
