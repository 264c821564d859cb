"""kill -9 at random instants: whatever the moment, the next run ends as if nothing had happened.

`PHIVISION_KILLS` says how often (5 times by default), `PHIVISION_SEED` at which instants.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage.store.garbage import garbage_of
from storage.store.survey import take_survey
from storage.store.verify import committed, verify
from tests.conftest import assignments
from tests.e2e.made_database import copy_database
from tests.faults.conftest import ROOT, Pipeline, Reference, digests, environment, opened

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(7200)]
KILLS = int(os.environ.get("PHIVISION_KILLS") or "5")
SEED = int(os.environ.get("PHIVISION_SEED") or "0")


def store_before(target: str, reference: Reference, store: Path) -> None:
    """Make a store as a run has it that has just come to a stage: all before is committed."""
    names = list(reference.seconds)
    later = names[names.index(target) :]
    shutil.copytree(reference.store, store, ignore=shutil.ignore_patterns("work", "runs", "refs"))
    for stage in later:
        shutil.rmtree(store / "manifests" / stage)
        shutil.rmtree(store / "artifacts" / stage)


def kill(pipeline: Pipeline, store: Path, reference: Reference, chance: random.Random) -> str:
    """Kill a run, with all its children, at a random instant of a random stage."""
    target = chance.choice(list(reference.seconds))
    delay = chance.uniform(0.0, reference.seconds[target])
    if not store.exists():
        store_before(target, reference, store)
    running = pipeline.start(store)
    running.printed.readline()  # work begins
    for stage in reference.seconds:
        if stage == target:
            break
        running.printed.readline()
    time.sleep(delay)
    running.kill()
    ended = " (it had just ended)" if running.process.exitcode == 0 else ""
    return f"{delay:.3f} s into {target}{ended}"


def check(store: Path, reference: Reference) -> None:
    """Fail unless a store holds just what the undisturbed run made, and that whole."""
    found = opened(store)
    for garbage in garbage_of(take_survey(found, store / "work", keep=1, grace=-10.0)):
        garbage.remove()  # folders of killed attempts; a workspace killed after its commit
    assert not list((store / "work" / "workspaces").iterdir())
    assert digests(found) == reference.digests
    assert verify(found, committed(found), lambda _: None) == []
    attempts = [name for stage in reference.seconds for name in found.list(f"artifacts/{stage}")]
    assert len(attempts) == len(reference.seconds)


def test_after_a_kill_at_any_instant_the_next_run_ends_the_same(
    pipeline: Pipeline, reference: Reference
) -> None:
    print(f"PHIVISION_SEED={SEED}", flush=True)
    chance = random.Random(SEED)
    for number in range(KILLS):
        store = pipeline.folder / f"killed-{number}"
        when = kill(pipeline, store, reference, chance)
        rows = pipeline.finish(store)
        cached = sum(row[1] == "cached" for row in rows)
        print(f"kill {number}: {when}; {cached} stages kept", flush=True)
        check(store, reference)
        shutil.rmtree(store)


def test_a_run_that_is_killed_again_and_again_still_ends_the_same(
    pipeline: Pipeline, reference: Reference
) -> None:
    chance = random.Random(SEED + 1)
    store = pipeline.folder / "killed-often"
    for _ in range(max(2, KILLS // 10)):
        kill(pipeline, store, reference, chance)
    pipeline.finish(store)
    check(store, reference)


def test_after_a_kill_of_the_command_itself_the_next_run_ends_the_same(
    pipeline: Pipeline, reference: Reference, tmp_path: Path
) -> None:
    """`phivision run` with Prefect and its server, killed as one group."""
    chance = random.Random(SEED + 2)
    settings = ("--wandb", "disabled", "--threads", "1")
    copy_database(tmp_path / "prefect")
    alone = {"PREFECT_HOME": str(tmp_path / "prefect"), "PHIVISION_DEVICE": "cpu"}
    for number in range(1 if KILLS < 10 else 2):
        store = pipeline.folder / f"command-{number}"
        target = chance.choice([name for name in reference.seconds if name != "publish"])
        changes = assignments(pipeline.changes)
        with subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", "--store", str(store), *settings, *changes],
            cwd=ROOT,
            env=environment() | alone,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        ) as running:
            assert running.stdout is not None
            assert any(line.startswith(target) for line in running.stdout)  # the next one begins
            time.sleep(chance.uniform(0.0, 1.0))
            os.killpg(running.pid, signal.SIGKILL)
        assert running.returncode == -signal.SIGKILL
        rows = pipeline.finish(store)
        assert [row[1] for row in rows][: list(reference.seconds).index(target) + 1] == [
            "cached"
        ] * (list(reference.seconds).index(target) + 1)
        check(store, reference)
        print(f"kill of the command after {target}", flush=True)


def test_an_undisturbed_run_leaves_nothing_to_do(pipeline: Pipeline, reference: Reference) -> None:
    rows = pipeline.finish(reference.store)
    assert {row[1] for row in rows} == {"cached"}
    check(reference.store, reference)
