"""The plan: which stages would run and why, in words; and adopting what a refactor left alone."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.engine import plan as plan_module
from pipeline.engine.accept import accept, accept_all
from pipeline.engine.dag import BY_NAME
from pipeline.engine.materialize import payload_of
from pipeline.engine.plan import check_stages, plan, why
from pipeline.errors import PipelineError
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest
from tests.support.fake_stages import FAKE_DAG, make
from tests.support.store_fixtures import add, again, flip, overwrite, payload, sealed

DEMO = preset("demo")


@pytest.fixture
def made(local: ArtifactStore, tmp_path: Path) -> Mapping[str, Manifest]:
    """Manifests of the fake stages, all fresh."""
    outcomes = make(local, Settings(store="x", workdir=tmp_path / "work"), DEMO)
    return {name: outcome.manifest for name, outcome in outcomes.items()}


def verdicts(store: ArtifactStore, recipe: Any = DEMO, rerun: Any = ()) -> list[tuple[str, str]]:
    return [(step.status, step.reason) for step in plan(recipe, store, rerun, FAKE_DAG)]


FRESH = ("fresh", "")


def test_an_empty_store_was_never_made(store: ArtifactStore) -> None:
    assert verdicts(store) == [
        ("stale", "never made"),
        ("unknown", "depends on numbers"),
        ("unknown", "depends on sums"),
    ]


def test_all_is_fresh_after_a_run(local: ArtifactStore, made: Mapping[str, Manifest]) -> None:
    assert verdicts(local) == [FRESH] * 3
    assert [step.manifest for step in plan(DEMO, local, (), FAKE_DAG)] == list(made.values())


def test_a_changed_field_is_named_with_both_values(
    local: ArtifactStore, made: Mapping[str, Manifest]
) -> None:
    changed = DEMO.override({"publish.name": "another-name", "seed": 5})
    assert verdicts(local, changed)[0] == (
        "stale",
        "field `publish.name` phivision-demo → another-name; field `seed` 0 → 5",
    )


def test_what_only_some_stages_read_leaves_the_others_fresh(
    local: ArtifactStore, made: Mapping[str, Manifest]
) -> None:
    assert verdicts(local, DEMO.override({"examples.max_tokens": 99})) == [FRESH] * 3


def test_forcing_is_a_reason_whatever_else_holds(
    local: ArtifactStore, made: Mapping[str, Manifest]
) -> None:
    assert verdicts(local, rerun=["sums", "report"]) == [
        FRESH,
        ("stale", "forced by --rerun"),
        ("stale", "forced by --rerun"),
    ]
    with pytest.raises(PipelineError, match="there is no stage 'pretrian'"):
        check_stages(["pretrian"])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("flip", "damaged: sum.json was altered"),
        ("truncate", "damaged: sum.json has 0 bytes instead of 1"),
        ("delete", "damaged: sum.json is missing"),
        ("mark", "damaged: sum.json"),
        ("manifest", "is not a manifest"),
    ],
)
def test_damage_is_named(
    local: ArtifactStore, made: Mapping[str, Manifest], damage: str, reason: str
) -> None:
    sums = made["sums"]
    name = f"{sums.folder}/sum.json"
    match damage:
        case "flip":
            flip(local, name)
        case "truncate":
            overwrite(local, name, b"")
        case "delete":
            local.files.remove(name)
        case "mark":
            local.mark_damaged(sums, ["sum.json"])
        case "manifest":
            overwrite(local, f"manifests/sums/{sums.fingerprint}.json", b"{")
    found = verdicts(local)
    assert found[0] == FRESH
    assert found[1][0] == "stale"
    assert reason in found[1][1]
    assert found[2] == ("unknown", "depends on sums")


def test_an_unknown_schema_stops_the_plan(
    local: ArtifactStore, made: Mapping[str, Manifest]
) -> None:
    overwrite(local, f"manifests/sums/{made['sums'].fingerprint}.json", sealed({"manifest": 9}))
    with pytest.raises(StorageError, match="schema 9"):
        verdicts(local)


def test_a_damaged_manifest_of_another_recipe_stops_nothing(
    local: ArtifactStore, made: Mapping[str, Manifest]
) -> None:
    local.write(f"manifests/sums/{'0' * 64}.json", b"{")
    local.write(f"manifests/sums/{'1' * 64}.json", sealed({"manifest": 9}))
    assert verdicts(local) == [FRESH] * 3


def test_other_versions_of_libraries_are_told_but_do_not_count(
    local: ArtifactStore, made: Mapping[str, Manifest]
) -> None:
    from storage.store.commits import publish

    sums = made["sums"]
    packages = {**sums.packages, "torch": "1.0"}
    publish(local, sums.model_copy(update={"packages": packages}), replace=True, warn=print)
    status, reason = verdicts(local)[1]
    assert status == "fresh"
    assert reason.startswith("made with other versions: torch 1.0 → ")


# -- why, in words ------------------------------------------------------------------------------


def reason(store: ArtifactStore, folder: Path, new: dict[str, Any], *old: dict[str, Any]) -> str:
    for number, what in enumerate(old):
        add(store, folder, {"a": b"%d" % number}, what)
    return why(new, store.manifests("numbers"))


CODE = {"model/projectors.py": "1", "model/vlm.py": "1"}
OLD = payload(
    recipe={"examples": {"max_tokens": 120, "words": ["a"]}, "seed": 0},
    inputs={"captions": "1", "images": "1"},
    code=CODE,
    source={"images": {"etag": "1"}},
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"recipe": {"examples": {"max_tokens": 200, "words": ["a"]}, "seed": 0}},
            "field `examples.max_tokens` 120 → 200",
        ),
        (
            {"recipe": {"examples": {"max_tokens": 120, "words": ["b" * 99]}, "seed": 0}},
            "field `examples.words` ['a'] → ['" + "b" * 35 + "…",
        ),
        (
            {"recipe": {"examples": {"words": ["a"], "new": True}, "seed": 0}},
            "field `examples.max_tokens` 120 → None; field `examples.new` None → True",
        ),
        ({"inputs": {"captions": "2", "images": "1"}}, "input `captions` changed"),
        ({"inputs": {"captions": "1"}}, "input `images` changed"),
        ({"source": {"images": {"etag": "2"}}}, "source `images` changed"),
        (
            {"code": {**CODE, "model/projectors.py": "2"}},
            "code changed: `model/projectors.py`",
        ),
        (
            {"code": {f"model/{letter}.py": letter for letter in "abcd"}},
            "code changed: `model/a.py`, `model/b.py`, `model/c.py`, `model/d.py` and 2 more",
        ),
    ],
)
def test_each_difference_has_its_words(
    local: ArtifactStore, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert reason(local, tmp_path, OLD | changes, OLD) == expected


def test_the_nearest_artifact_is_compared_and_of_two_the_newer_one(
    local: ArtifactStore, tmp_path: Path
) -> None:
    far = OLD | {"inputs": {"captions": "9", "images": "9"}, "code": {}}
    near = OLD | {"recipe": {"examples": {"max_tokens": 1, "words": ["a"]}, "seed": 0}}
    nearer = OLD | {"recipe": {"examples": {"max_tokens": 2, "words": ["a"]}, "seed": 0}}
    assert reason(local, tmp_path, OLD, far, near, nearer, far | {"code": {"x": "1"}}) == (
        "field `examples.max_tokens` 2 → 120"
    )


def test_many_differences_are_counted(local: ArtifactStore, tmp_path: Path) -> None:
    fields = {f"field{number}": number for number in range(7)}
    changed = reason(local, tmp_path, OLD | {"recipe": fields}, OLD | {"recipe": {"field0": 0}})
    assert changed.count("field `") == 4
    assert changed.endswith("; and 2 more")


# -- accept -------------------------------------------------------------------------------------


@pytest.fixture
def refactored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage's code has changed since it was made."""
    real = plan_module.payload_of
    monkeypatch.setattr(
        plan_module, "payload_of", lambda *a: real(*a) | {"code": {"model/new.py": "1"}}
    )


def test_every_stage_can_be_accepted_at_once(
    local: ArtifactStore, made: Mapping[str, Manifest], refactored: None
) -> None:
    adopted = list(accept_all(DEMO, local, FAKE_DAG))
    assert [each.manifest.stage for each in adopted] == ["numbers", "sums", "report"]
    assert all(each.manifest.accepted == made[each.manifest.stage].fingerprint for each in adopted)
    assert verdicts(local) == [FRESH] * 3


def test_accepting_keeps_the_artifact_and_says_what_changed(
    local: ArtifactStore, made: Mapping[str, Manifest], refactored: None
) -> None:
    assert verdicts(local)[0] == ("stale", "code changed: `model/new.py`")
    with pytest.raises(PipelineError, match=r"sums depends on numbers.*not known yet"):
        accept("sums", DEMO, local, stages=FAKE_DAG)
    for name in ("numbers", "sums", "report"):
        adoption = accept(name, DEMO, local, stages=FAKE_DAG)
        assert adoption.differences == ["code changed: `model/new.py`"]
        assert adoption.manifest.accepted == made[name].fingerprint
        assert adoption.manifest.digest == made[name].digest
        assert adoption.manifest.folder == made[name].folder
    assert verdicts(local) == [FRESH] * 3
    assert list(accept_all(DEMO, local, FAKE_DAG)) == []
    with pytest.raises(PipelineError, match="report is fresh"):
        accept("report", DEMO, local, stages=FAKE_DAG)
    store = again(local, Path(local.uri) / "elsewhere")
    found = plan(DEMO, store, (), FAKE_DAG)[2].manifest
    assert found is not None
    assert store.artifact(found).path("report.md").is_file()


def test_an_artifact_of_another_recipe_is_adopted_only_by_name(
    local: ArtifactStore, made: Mapping[str, Manifest]
) -> None:
    changed = DEMO.override({"seed": 5})
    with pytest.raises(
        PipelineError, match=r"differs in its code only.*field `seed` 0 → 5"
    ) as told:
        accept("numbers", changed, local, stages=FAKE_DAG)
    start = made["numbers"].fingerprint[:12]
    assert f"--made-as {start}" in str(told.value)
    with pytest.raises(PipelineError, match="0 artifacts of numbers"):
        accept("numbers", changed, local, made_as="zz", stages=FAKE_DAG)
    accept("numbers", changed, local, made_as=start, stages=FAKE_DAG)
    assert verdicts(local, changed)[0] == FRESH


def test_a_damaged_artifact_is_not_adopted(
    local: ArtifactStore, made: Mapping[str, Manifest], refactored: None
) -> None:
    local.mark_damaged(made["numbers"], ["0.txt"])
    with pytest.raises(PipelineError, match="no intact artifact to adopt"):
        accept("numbers", DEMO, local, stages=FAKE_DAG)


# -- the command --------------------------------------------------------------------------------

PROBE = """
import sys, time
start = time.perf_counter()
from flows.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "prefect", "pyarrow", "duckdb", "numpy", "PIL", "fsspec", "transformers"}
    loaded = sorted(heavy & set(sys.modules))
    print(time.perf_counter() - start, *loaded, file=sys.stderr)
"""


def command(*arguments: str, cache: Path) -> tuple[str, float, list[str]]:
    """Run a command as installed, with byte code; return its output, seconds and heavy imports."""
    variables = {
        key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
    }
    variables |= {"PYTHONPYCACHEPREFIX": str(cache), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, *loaded = done.stderr.split()
    return done.stdout, float(seconds), loaded


def test_the_command_imports_nothing_heavy(tmp_path: Path) -> None:
    arguments = ("plan", "--store", str(tmp_path / "s"), "--format", "json")
    command(*arguments, cache=tmp_path / "pyc")
    assert command(*arguments, cache=tmp_path / "pyc")[2] == []
    rows = json.loads(command(*arguments, cache=tmp_path / "pyc")[0])
    assert [row["stage"] for row in rows][:3] == ["images", "conversations", "backbones"]
    told = {"stage": "images", "status": "stale", "reason": "never made"}
    assert rows[0] == {**told, "seconds": None, "made": None}
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert rows[2]["reason"] == "depends on images, conversations"


def test_the_table_says_the_same(tmp_path: Path) -> None:
    text = command("plan", "--store", str(tmp_path / "s"), cache=tmp_path / "pyc")[0]
    *lines, last = [line.strip().split(maxsplit=3) for line in text.splitlines()]
    assert lines[0] == ["stage", "status", "will", "take  reason"]
    assert lines[1] == ["images", "stale", "unknown", "never made"]
    assert len(lines) == 10
    assert " ".join(last).startswith("→ how long it takes is unknown")


def test_a_stage_of_another_preset_is_told_in_one_line() -> None:
    payloads = [payload_of(BY_NAME["images"], preset(name), {}) for name in ("demo", "coco")]
    made: Any = SimpleNamespace(payload=payloads[0])
    told = why(payloads[1], [made])
    assert told.startswith("new: field `images.source.kind` demo → coco2017, and ")
    assert told.endswith(" other differences")
