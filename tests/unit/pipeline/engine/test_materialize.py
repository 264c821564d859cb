"""Materializing: made once, found ever after, whatever happens in between."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.engine.code_identity import ROOT
from pipeline.engine.dag import BY_NAME
from pipeline.engine.materialize import other_versions
from pipeline.engine.runs import compare_runs, find_run, run_name
from pipeline.engine.stage import Stage, StageContext
from pipeline.errors import PipelineError
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.store.commits import publish
from storage.store.runs import read_runs
from tests.support.fake_stages import FAKE_DAG, SHARDS, FakeStage, Quiet, calls, make
from tests.support.store_fixtures import again, environment, flip, overwrite

DEMO = preset("demo")
SEVEN = DEMO.override({"seed": 7})
ALL = ["numbers", "sums", "report"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHIVISION_CALLS", str(tmp_path / "calls.txt"))
    return tmp_path / "calls.txt"


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    return Settings(store="unused", workdir=tmp_path / "work")


def stages_of(log: Path) -> list[str]:
    return [name for name in calls(log) if not name.startswith("shard")]


def digests(outcomes: Mapping[str, Any]) -> dict[str, str]:
    return {name: outcome.manifest.digest for name, outcome in outcomes.items()}


def statuses(outcomes: Mapping[str, Any]) -> list[str]:
    return [outcome.status for outcome in outcomes.values()]


# -- once ---------------------------------------------------------------------------------------


def test_a_second_run_executes_nothing(store: ArtifactStore, chosen: Settings, log: Path) -> None:
    first = make(store, chosen, DEMO)
    second = make(again(store, chosen.work / "other"), chosen, DEMO)
    assert (statuses(first), statuses(second)) == (["made"] * 3, ["cached"] * 3)
    assert digests(first) == digests(second)
    assert stages_of(log) == ALL
    assert first["numbers"].manifest.summary == {"shards": SHARDS}
    assert not list((chosen.work / "workspaces").iterdir())


def test_a_stage_with_the_same_output_stops_the_ripple(
    local: ArtifactStore, chosen: Settings, log: Path
) -> None:
    """Early cutoff: `numbers` is given a name that it does not use."""
    first = make(local, chosen, DEMO)
    second = make(local, chosen, DEMO.override({"publish.name": "other"}))
    assert statuses(second) == ["made", "cached", "cached"]
    assert stages_of(log) == [*ALL, "numbers"]
    assert first["numbers"].manifest.fingerprint != second["numbers"].manifest.fingerprint
    assert digests(first) == digests(second)


@given(
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    devices=st.integers(1, 64),
    threads=st.none() | st.integers(1, 64),
    wandb=st.sampled_from(["offline", "online", "disabled"]),
    cache_bytes=st.integers(0, 2**50),
    strategy=st.text(max_size=5),
    wandb_project=st.text(max_size=5),
    task_runner=st.sampled_from(["threads", "dask:1", "dask:12", "tcp://host:8786"]),
    publish_anyway=st.booleans(),
    judge=st.booleans(),
    launcher=st.sampled_from(["", "torchrun --nproc-per-node 2"]),
    workdir=st.sampled_from(["a", "b", "c"]),
)
@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_settings_never_make_anything_again(tmp_path: Path, **values: Any) -> None:
    assert {*values, "store"} == set(Settings.model_fields)
    work = tmp_path / values.pop("workdir")
    store = ArtifactStore(str(tmp_path / "store"), work / "cache")
    make(store, Settings(store="first", workdir=tmp_path), DEMO)
    found = make(store, Settings(store=str(tmp_path), workdir=work, **values), DEMO)
    assert statuses(found) == ["cached"] * 3


def test_a_home_folder_is_meant_in_every_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for store in ("~/store", "file://~/store"):
        found = Settings(store=store, workdir=None)
        assert found.work == Path(ArtifactStore(store, tmp_path / "cache").uri) / "work"
        assert found.work == tmp_path / "store" / "work"
    assert Settings(store="s3://x/y", workdir=Path("~/here")).work == tmp_path / "here"


def test_forcing_makes_just_that_stage_again(
    store: ArtifactStore, chosen: Settings, log: Path
) -> None:
    first = make(store, chosen, DEMO)
    second = make(store, chosen, DEMO, rerun=["sums"])
    assert statuses(second) == ["cached", "made", "cached"]
    assert digests(first) == digests(second)
    assert first["sums"].manifest.attempt != second["sums"].manifest.attempt
    assert second["sums"].manifest.replaced == ""
    assert stages_of(log) == [*ALL, "sums"]


# -- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "folder", "manifest", "mark"])
def test_just_what_is_damaged_is_made_again(
    store: ArtifactStore, chosen: Settings, log: Path, damage: str
) -> None:
    first = make(store, chosen, DEMO)
    sums = first["sums"].manifest
    name = f"{sums.folder}/sum.json"
    if damage == "flip":
        flip(store, name)
        with pytest.raises(StorageError):  # on a remote store nobody knows before it is read
            again(store, chosen.work / "x").artifact(sums).path("sum.json")
    elif damage == "truncate":
        overwrite(store, name, b"")
    elif damage == "delete":
        store.files.remove(name)
    elif damage == "folder":
        store.files.remove(sums.folder)
    elif damage == "manifest":
        overwrite(store, f"manifests/sums/{sums.fingerprint}.json", b"\x00" * 100)
    else:
        store.mark_damaged(sums, ["sum.json"])
    second = make(store, chosen, DEMO)
    assert statuses(second) == ["cached", "made", "cached"]
    assert digests(first) == digests(second)
    assert stages_of(log) == [*ALL, "sums"]
    assert statuses(make(store, chosen, DEMO)) == ["cached"] * 3


def test_what_is_damaged_is_not_made_again_from_the_damaged_file(
    local: ArtifactStore, chosen: Settings, log: Path
) -> None:
    """A run was killed after its commit: its workspace still shares files with the artifact."""
    first = make(local, chosen, DEMO)
    manifest = first["numbers"].manifest
    scratch = chosen.work / "workspaces" / f"numbers-{manifest.fingerprint[:16]}" / "scratch"
    scratch.mkdir(parents=True)
    for path in (Path(local.uri) / manifest.folder).iterdir():
        os.link(path, scratch / path.name)
    flip(local, f"{manifest.folder}/3.txt")
    second = make(local, chosen, DEMO)
    assert digests(first) == digests(second)
    assert statuses(second) == ["made", "cached", "cached"]


def test_a_killed_re_making_goes_on_where_it_was(
    local: ArtifactStore, chosen: Settings, log: Path
) -> None:
    first = make(local, chosen, DEMO)
    manifest = first["numbers"].manifest
    local.mark_damaged(manifest, ["0.txt"])

    def stop(context: StageContext, **_: Any) -> Mapping[str, Any]:
        (context.scratch / "0.txt").write_text("0\n")
        (context.out / "rest").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(local, chosen, DEMO, stages=[replace(FAKE_DAG[0], call=stop)])
    before = len(calls(log))
    second = make(local, chosen, DEMO)
    assert digests(first) == digests(second)
    assert "shard-0" not in calls(log)[before:]
    assert "shard-1" in calls(log)[before:]


@pytest.mark.parametrize("there", [False, True], ids=["never made", "made before"])
@pytest.mark.parametrize("attempts", [1, 2])
def test_forcing_helps_where_finished_work_is_spoilt(
    local: ArtifactStore, chosen: Settings, *, there: bool, attempts: int
) -> None:
    """A scratch file that lets the stage fail stays until a run is told to begin with nothing."""

    def fragile(context: StageContext, seed: int) -> Mapping[str, Any]:
        left = context.scratch / "shard"
        spoilt = left.is_file() or os.environ.get("SPOILT") == "yes"
        left.write_text("spoilt")
        if spoilt:
            raise ValueError("cannot be read")
        (context.out / "a").write_text("a")
        return {}

    def run(spoilt: str, **options: Any) -> list[str]:
        with environment({"SPOILT": spoilt}):
            return statuses(make(local, chosen, DEMO, stages=[stage], **options))

    stage = FakeStage("fragile", call=fragile)
    if there:
        made = make(local, chosen, DEMO, stages=[stage])["fragile"].manifest
        local.mark_damaged(made, ["a"])
    for spoilt in ("yes", "no"):
        with pytest.raises(ValueError, match="cannot be read"):
            run(spoilt)
    for _ in range(attempts - 1):
        with pytest.raises(ValueError, match="cannot be read"):
            run("yes", rerun=["fragile"])
    assert run("no", rerun=["fragile"]) == ["made"]


def test_a_killed_forced_making_goes_on_where_it_was(
    local: ArtifactStore, chosen: Settings, log: Path
) -> None:
    first = make(local, chosen, DEMO)

    def stop(context: StageContext, **_: Any) -> Mapping[str, Any]:
        (context.scratch / "0.txt").write_text("0\n")
        raise KeyboardInterrupt

    stages = [replace(FAKE_DAG[0], call=stop)]
    with pytest.raises(KeyboardInterrupt):
        make(local, chosen, DEMO, stages=stages, rerun=["numbers"])
    before = len(calls(log))
    assert digests(make(local, chosen, DEMO, rerun=["numbers"])) == digests(first)
    assert "shard-0" not in calls(log)[before:]
    assert "shard-1" in calls(log)[before:]


def test_a_stage_that_is_not_deterministic_is_told_and_recorded(
    local: ArtifactStore, chosen: Settings
) -> None:
    def luck(context: StageContext, seed: int) -> Mapping[str, Any]:
        (context.out / "luck.txt").write_text(str(time.time_ns()))
        return {}

    stage, reporter = FakeStage("luck", call=luck), Quiet()
    first = make(local, chosen, DEMO, stages=[stage])["luck"].manifest
    made = make(local, chosen, DEMO, stages=[stage], rerun=["luck"], reporter=reporter)
    assert made["luck"].manifest.replaced == first.digest
    assert any("luck is not deterministic" in line for line in reporter.said)


# -- failures -----------------------------------------------------------------------------------


def failing(error: Exception) -> FakeStage:
    def fail(context: StageContext, seed: int) -> Mapping[str, Any]:
        (context.out / "half").write_text("x")
        raise error

    return FakeStage("failing", call=fail)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("PytorchStreamWriter failed: No space left on device"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_no_room_is_one_clear_line_whoever_noticed(
    local: ArtifactStore, chosen: Settings, error: Exception
) -> None:
    with pytest.raises(StorageError, match=r"failing found no space left in .*\n.*free some space"):
        make(local, chosen, DEMO, stages=[failing(error)])


def test_no_room_behind_another_error_is_seen(local: ArtifactStore, chosen: Settings) -> None:
    outer = ValueError("cannot save")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageError, match="no space left"):
        make(local, chosen, DEMO, stages=[failing(outer)])


def test_other_errors_stay_as_they_are(local: ArtifactStore, chosen: Settings) -> None:
    with pytest.raises(ZeroDivisionError):
        make(local, chosen, DEMO, stages=[failing(ZeroDivisionError())])
    assert local.manifests("failing") == []


def test_an_error_of_a_stage_that_removed_its_folder_stays_as_it_is(
    local: ArtifactStore, chosen: Settings
) -> None:
    def fail(context: StageContext, seed: int) -> Mapping[str, Any]:
        context.out.rmdir()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make(local, chosen, DEMO, stages=[FakeStage("failing", call=fail)])


def test_a_work_folder_that_cannot_be_made_is_one_clear_line(
    local: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "work" / "locks").mkdir(parents=True)
    (tmp_path / "work" / "workspaces").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot create .*workspaces"):
        make(local, Settings(store="x", workdir=tmp_path / "work"), DEMO)


def test_a_full_disk_in_the_middle_of_a_shard_loses_nothing(tmp_path: Path) -> None:
    """A real small disk: the artifact does not fit, is told, and fits after a cleaning."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.errors import StorageError
from tests.support.fake_stages import FakeStage, make
disk = Path({str(disk)!r})
def big(context, seed):
    for number in range(4):
        path = context.scratch / str(number)
        if not path.exists():
            part = path.with_suffix(".tmp")
            part.write_bytes(bytes([number]) * 300_000)
            part.replace(path)
        (context.out / str(number)).hardlink_to(path)
    return {{}}
(disk / "ballast").write_bytes(bytes(1_200_000))
settings = Settings(store=str(disk / "store"))
store = ArtifactStore(settings.store, settings.work / "cache")
try:
    make(store, settings, preset("demo"), stages=[FakeStage("big", call=big)])
except StorageError as error:
    print(error)
assert store.manifests("big") == []
(disk / "ballast").unlink()
found = make(store, settings, preset("demo"), stages=[FakeStage("big", call=big)])["big"]
print(found.status, len(found.manifest.files), repr(store.damage(found.manifest)))
"""
    mount = f"mount -t tmpfs -o size=2m tmpfs {disk} && exec {sys.executable} -"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
        input=script,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    assert done.stderr == ""
    first, remedy, second = done.stdout.splitlines()
    assert "big found no space left" in first
    assert "free some space" in remedy
    assert second == "made 4 ''"


# -- two at once --------------------------------------------------------------------------------


def start(store: Path, work: Path, log: Path, slow: float = 0.05) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.fake_stages", str(store), str(work)]
    variables = {**os.environ, "PHIVISION_CALLS": str(log), "PHIVISION_SLOW": str(slow)}
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    log = tmp_path / "calls.txt"
    both = [start(tmp_path / "s", tmp_path / "w", log) for _ in range(2)]
    one, two = ([line.split() for line in each.communicate()[0].splitlines()] for each in both)
    assert [each.returncode for each in both] == [0, 0]
    assert sorted(stages_of(log)) == sorted(ALL)
    assert [line[::2] for line in one] == [line[::2] for line in two]
    for stage in ALL:
        assert sorted(line[1] for line in [*one, *two] if line[0] == stage) == ["cached", "made"]


def test_two_machines_with_one_bucket_share_the_work(
    s3: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "calls.txt"
    monkeypatch.setenv("PHIVISION_CALLS", str(log))
    monkeypatch.setenv("PHIVISION_SLOW", "0.05")
    found: list[dict[str, str]] = []

    def run(number: int) -> None:
        work = tmp_path / str(number)
        chosen = Settings(store="x", workdir=work)
        found.append(digests(make(again(s3, work / "cache"), chosen, DEMO)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert sorted(stages_of(log)) == sorted(ALL)


def test_where_locks_fail_both_work_and_agree(local: ArtifactStore, tmp_path: Path) -> None:
    """Two machines with work folders of their own and a shared folder as store."""
    log = tmp_path / "calls.txt"
    both = [start(tmp_path / "store", tmp_path / f"w{n}", log) for n in range(2)]
    lines = [each.communicate()[0].splitlines() for each in both]
    assert [each.returncode for each in both] == [0, 0]
    digests = [[line.split()[2] for line in each] for each in lines]
    assert digests[0] == digests[1]
    assert {len(local.manifests(stage)) for stage in ALL} == {1}


@pytest.mark.parametrize("rerun", [[], ["numbers"]], ids=["new", "forced"])
def test_where_locks_fail_two_in_one_work_folder_leave_each_other_alone(
    local: ArtifactStore,
    chosen: Settings,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    rerun: list[str],
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if rerun:
        make(local, chosen, DEMO)
    before = len(stages_of(log))
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setenv("PHIVISION_SLOW", "0.1")
    found: list[dict[str, str]] = []

    def run() -> None:
        found.append(digests(make(local, chosen, DEMO, rerun=rerun)))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert stages_of(log)[before:].count("numbers") == 2
    assert not list((chosen.work / "workspaces").iterdir())


def test_a_killed_process_leaves_its_shards_and_blocks_nobody(tmp_path: Path) -> None:
    log = tmp_path / "calls.txt"
    victim = start(tmp_path / "s", tmp_path / "w", log, slow=0.5)
    while "shard-2" not in calls(log):
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    heir = start(tmp_path / "s", tmp_path / "w", log, slow=0.0)
    heir.communicate(timeout=60)
    assert heir.returncode == 0
    assert calls(log).count("shard-0") == 1
    assert calls(log).count("shard-2") == 2
    alone = start(tmp_path / "t", tmp_path / "u", tmp_path / "other.txt", slow=0.0)
    alone.communicate(timeout=60)
    stores = [ArtifactStore(str(tmp_path / name), tmp_path / "c") for name in ("s", "t")]
    found = [[store.manifests(stage)[0].digest for stage in ALL] for store in stores]
    assert found[0] == found[1]


def test_who_was_forced_and_waited_takes_what_the_other_made(
    local: ArtifactStore, chosen: Settings, log: Path
) -> None:
    make(local, chosen, DEMO)
    with environment({"PHIVISION_SLOW": "0.05"}):
        threads = [
            threading.Thread(target=make, args=(local, chosen, DEMO), kwargs={"rerun": ["numbers"]})
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        for thread in threads:
            thread.join()
    assert stages_of(log).count("numbers") == 2


# -- runs ---------------------------------------------------------------------------------------


def test_a_run_done_again_is_the_latest_and_adds_no_record(
    store: ArtifactStore, chosen: Settings
) -> None:
    first = make(store, chosen, DEMO)
    make(store, chosen, SEVEN)
    name = run_name([outcome.manifest for outcome in first.values()])
    assert find_run(store, "latest")["run"] != name
    make(store, chosen, DEMO)
    records = read_runs(store)
    assert [len(records), records[0]["run"], records[0]["made"]] == [2, name, ALL]
    assert find_run(store, "latest") == find_run(store, name[:6]) == find_run(store, name)
    before = store.read(f"runs/{name}.json")
    make(store, chosen, DEMO)
    assert store.read(f"runs/{name}.json") == before


def test_the_run_recorded_last_is_the_newest_although_a_clock_was_ahead(
    store: ArtifactStore, chosen: Settings
) -> None:
    first = make(store, chosen, DEMO)
    name = run_name([outcome.manifest for outcome in first.values()])
    data = json.loads(store.read(f"runs/{name}.json") or b"")
    store.write(f"runs/{name}.json", json.dumps({**data, "created": 9e12}).encode())
    make(store, chosen, SEVEN)
    assert read_runs(store)[1]["run"] == name
    assert read_runs(store)[0] == find_run(store, "latest")


def test_a_torn_record_of_the_same_run_is_written_anew(
    store: ArtifactStore, chosen: Settings
) -> None:
    first = make(store, chosen, DEMO)
    name = run_name([outcome.manifest for outcome in first.values()])
    overwrite(store, f"runs/{name}.json", b'{"run":')
    make(store, chosen, DEMO)
    assert [record["run"] for record in read_runs(store)] == [name]


def test_a_cached_run_works_on_a_read_only_store(
    local: ArtifactStore, chosen: Settings, tmp_path: Path
) -> None:
    make(local, chosen, DEMO)
    before = sorted(path for path in (tmp_path / "store").rglob("*"))
    (tmp_path / "file").write_bytes(b"")
    nowhere = Settings(store="x", workdir=tmp_path / "file" / "work")
    found = make(ArtifactStore(local.uri, nowhere.work / "cache"), nowhere, DEMO)
    assert statuses(found) == ["cached"] * 3
    assert sorted(path for path in (tmp_path / "store").rglob("*")) == before


def test_runs_are_compared_by_fields_digests_and_metrics(
    local: ArtifactStore, chosen: Settings
) -> None:
    def evaluate(context: StageContext, seed: int) -> Mapping[str, Any]:
        row = {"stage": "finetune", "split": "test", "condition": "real", "metric": "cider_d"}
        text = f'[{{"value": {seed / 2}, {str(row)[1:-1]}}}]'.replace("'", '"')
        (context.out / "metrics.json").write_text(text)
        return {}

    stages = [FakeStage("evaluate", call=evaluate)]
    for recipe in (DEMO, SEVEN):
        make(local, chosen, recipe, stages=stages)
    names = [record["run"] for record in read_runs(local)]
    changes = {
        (c.kind, c.name): (c.before, c.after) for c in compare_runs(local, names[1], "latest")
    }
    assert changes[("field", "seed")] == (0, 7)
    assert changes[("metric", "finetune/test/real/cider_d")] == (0.0, 3.5)
    assert {kind for kind, _ in changes} == {"field", "digest", "metric"}
    assert compare_runs(local, names[0], names[0]) == []


def test_a_run_without_metrics_is_compared_by_the_rest(
    local: ArtifactStore, chosen: Settings
) -> None:
    make(local, chosen, DEMO)
    make(local, chosen, SEVEN)
    names = [record["run"] for record in read_runs(local)]
    assert {change.kind for change in compare_runs(local, *names)} == {"field", "digest"}
    with pytest.raises(PipelineError, match="0 runs match 'zzz'"):
        find_run(local, "zzz")
    with pytest.raises(PipelineError, match="2 runs match ''"):
        find_run(local, "")


# -- what is told about versions; Stage ---------------------------------------------------------


def test_other_versions_of_libraries_are_told(local: ArtifactStore, chosen: Settings) -> None:
    manifest = make(local, chosen, DEMO)["numbers"].manifest
    assert other_versions(manifest) == ""
    packages = {**manifest.packages, "torch": "1.0", "nonsense": "2.0"}
    told = other_versions(manifest.model_copy(update={"packages": packages}))
    assert told == f"torch 1.0 → {manifest.packages['torch']}, nonsense 2.0 → "
    publish(local, manifest.model_copy(update={"packages": packages}), replace=True, warn=print)
    reporter = Quiet()
    assert statuses(make(local, chosen, DEMO, reporter=reporter)) == ["cached"] * 3
    assert reporter.said == [f"  numbers was made with other versions: {told}"]


def test_a_machine_without_git_makes_artifacts_too(
    local: ArtifactStore, chosen: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert make(local, chosen, DEMO)["numbers"].manifest.commit == ""


def test_a_stage_finds_its_function_by_its_name() -> None:
    from pipeline.publishing.model_card import model_card

    stage = Stage("model_card", "pipeline.publishing.model_card")
    assert stage.function() is model_card


def test_a_stage_may_stand_alone_under_some_recipes() -> None:
    stage = Stage("x", "x", inputs=("a",), standalone=lambda recipe: recipe.seed == 7)
    assert stage.inputs_with(DEMO) == ("a",)
    assert stage.inputs_with(SEVEN) == ()


def test_the_state_of_an_outside_source_bears_identity(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text("[]")
    recipe = DEMO.override(
        {
            "conversations.source.kind": "file",
            "conversations.source.path": str(tmp_path / "talk.json"),
            "conversations.source.sha256": None,
        }
    )
    stage = BY_NAME["conversations"]
    before = stage.source_state(recipe)
    (tmp_path / "talk.json").write_text("[1]")
    assert stage.source_state(recipe) != before
    assert stage.source_state(DEMO) == {}
    assert replace(stage, probe=None).source_state(recipe) == {}
