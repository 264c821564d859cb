"""A run that dies at any call that changes its store: the next run ends as if it had not.

The kill tests choose instants at random; here every instant between two changes of the store has
its turn, on a folder and on an object store.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.garbage import garbage_of
from storage.store.survey import take_survey
from storage.store.verify import committed, verify
from tests.support import fake_stages
from tests.support.fake_stages import FAKE_DAG, make

STAGES = FAKE_DAG[:2]
CHANGES = ("put", "create", "write", "remove")
DEMO = preset("demo")


class Died(BaseException):
    """The process is gone: nothing may catch this."""


class Dying:
    """Lets the methods of a store's files that change something end the process at one call.

    Attributes:
        left: Calls until the end; every call after it fails too, as a dead process makes none.
        late: Whether the last call still does its work.
    """

    def __init__(self, store: ArtifactStore, left: int, *, late: bool) -> None:
        self.left, self.late = left, late
        for name in CHANGES:
            setattr(store.files, name, self._wrap(getattr(store.files, name)))

    @property
    def has_died(self) -> bool:
        """Whether the last call has come."""
        return self.left <= 0

    def _wrap(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.left -= 1
            if self.left > 0:
                return method(*arguments)
            if self.left == 0 and self.late:
                method(*arguments)
            raise Died

        return call


def opened(place: str, folder: Path) -> ArtifactStore:
    """Return the store as a process that has just begun."""
    uri = str(folder / "store") if place == "local" else f"memory://{folder}/store"
    return ArtifactStore(uri, folder / "cache")


def settings(folder: Path) -> Settings:
    return Settings(store="unused", workdir=folder / "work")


def forget_leases(store: ArtifactStore) -> None:
    """Let the leases of the dead run out now and not in a minute."""
    for folder in store.list("leases"):
        for name in store.list(folder):
            store.write(name, json.dumps({"beat": 0.0, "done": False}).encode())


def check(store: ArtifactStore, folder: Path, digests: dict[str, str]) -> None:
    """Fail unless the next run ends with these digests, whole, and one attempt of each stage."""
    forget_leases(store)
    made = make(store, settings(folder), DEMO, stages=STAGES)
    assert {name: outcome.manifest.digest for name, outcome in made.items()} == digests
    for garbage in garbage_of(take_survey(store, folder / "work", keep=1, grace=-10.0)):
        garbage.remove()
    assert verify(store, committed(store), lambda _: None) == []
    assert [len(store.list(f"artifacts/{stage.name}")) for stage in STAGES] == [1] * len(STAGES)
    again = make(store, settings(folder), DEMO, stages=STAGES)
    assert {outcome.status for outcome in again.values()} == {"cached"}


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run makes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_stages, "SHARDS", 2)
        made = make(opened("local", folder), settings(folder), DEMO, stages=STAGES)
    return {name: outcome.manifest.digest for name, outcome in made.items()}


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("begun", ["with nothing", "with a rerun", "with damage"])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_whatever_call_is_the_last_the_next_run_ends_the_same(
    place: str,
    begun: str,
    digests: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    late: bool,
) -> None:
    monkeypatch.setattr(fake_stages, "SHARDS", 2)
    for last in itertools.count(1):
        folder = tmp_path / str(last)
        if begun != "with nothing":
            made = make(opened(place, folder), settings(folder), DEMO, stages=STAGES)
        if begun == "with damage":
            opened(place, folder).mark_damaged(made["numbers"].manifest, ["0.txt"])
        store = opened(place, folder)
        dying = Dying(store, last, late=late)
        rerun = ["numbers", "sums"] if begun == "with a rerun" else []
        try:
            make(store, settings(folder), DEMO, stages=STAGES, rerun=rerun)
        except Died:
            check(opened(place, folder), folder, digests)
        if not dying.has_died:
            break
    assert last > 3
