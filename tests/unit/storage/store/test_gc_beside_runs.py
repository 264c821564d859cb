"""gc in its sharpest form beside runs: no run notices it, and what a run ends with is whole."""

import threading
import time
from pathlib import Path

import pytest

from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.garbage import garbage_of
from storage.store.leases import presence
from storage.store.survey import take_survey
from tests.support.fake_stages import FAKE_DAG, make
from tests.support.store_fixtures import again

RUNS = 8


class Sweeper(threading.Thread):
    """Removes what can go, at once and again and again, and counts it."""

    def __init__(self, store: ArtifactStore, work: Path) -> None:
        super().__init__()
        self.store, self.work = store, work
        self.rounds = self.removed = 0
        self.stop = threading.Event()
        self.failed: Exception | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                for garbage in garbage_of(take_survey(self.store, self.work, keep=0, grace=0.0)):
                    garbage.remove()
                    self.removed += garbage.kind in ("manifest", "attempt")
                self.rounds += 1
        except Exception as error:
            self.failed = error

    def wait(self, rounds: int) -> None:
        """Wait until it has gone round so often from here on."""
        goal = self.rounds + rounds
        while self.rounds < goal and self.failed is None:
            time.sleep(0.005)


def test_a_run_keeps_what_it_found_and_made(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two recipes take turns, so that each run finds some of its artifacts and makes others."""
    monkeypatch.setenv("PHIVISION_SLOW", "0.01")
    chosen = Settings(store="x", workdir=tmp_path / "work")
    seen: dict[int, dict[str, str]] = {}
    store.claim()
    sweeper = Sweeper(again(store, tmp_path / "gc"), chosen.work)
    sweeper.start()
    try:
        for number in range(RUNS):
            recipe = preset("demo").override({"seed": number // 2 % 2})
            with presence(store, chosen.work / "locks"):
                made = make(store, chosen, recipe)
                for stage in FAKE_DAG:
                    manifest = made[stage.name].manifest
                    assert store.damage(manifest) == ""
                    for path in store.artifact(manifest).paths("*"):
                        assert path.stat().st_size > 0
            digests = {name: outcome.manifest.digest for name, outcome in made.items()}
            assert seen.setdefault(recipe.seed, digests) == digests
            if number % 4 == 3:
                sweeper.wait(2)
    finally:
        sweeper.stop.set()
        sweeper.join()
    assert sweeper.failed is None
    assert sweeper.removed > 0
