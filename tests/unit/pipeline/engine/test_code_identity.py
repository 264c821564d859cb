"""Code identity: a comment or a move re-runs nothing, a real edit exactly what can notice it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine.code_facts import read_facts
from pipeline.engine.code_identity import INFRASTRUCTURE, PACKAGES, ROOT, code_digests
from pipeline.engine.dag import DAG
from pipeline.recipe.presets import preset

SOURCE = '''
"""A module."""

from model import maths
from pipeline.errors import PipelineError


def stage(x: int) -> int:
    """Return more."""
    # one more
    if x < Thing.least:
        raise PipelineError("too small", "take more")
    return maths.double(x) + 1


class Thing:
    """A class."""

    least: int = len("thing")


async def other() -> None:
    """Only a docstring."""
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "pipeline/__init__.py": "",
        "pipeline/stage_a.py": SOURCE,
        "pipeline/errors.py": "class PipelineError(Exception): ...\n",
        "model/__init__.py": "",
        "model/maths.py": "def double(x):\n    from model.deep import two\n    return two() * x\n",
        "model/deep/__init__.py": "from .numbers import two\n",
        "model/deep/numbers.py": "from ..roots import one\ndef two():\n    return one() + one()\n",
        "model/roots.py": "import pipeline.errors\nimport json\n\ndef one():\n    return 1\n",
        "model/unused.py": "more = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def edit(project: Path, name: str, old: str, new: str) -> None:
    path = project / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def changed(project: Path, name: str, old: str, new: str) -> list[str]:
    before = code_digests("pipeline.stage_a", "stage", project)
    edit(project, name, old, new)
    after = code_digests("pipeline.stage_a", "stage", project)
    return sorted(path for path in {*before, *after} if before.get(path) != after.get(path))


def test_the_closure_follows_every_kind_of_import(project: Path) -> None:
    assert list(code_digests("pipeline.stage_a", "stage", project)) == [
        "model/deep/numbers.py",
        "model/maths.py",
        "model/roots.py",
        "pipeline/stage_a.py",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# one more", "# two more, at length"),
        ('"""Return more."""', '"""Return much more than before."""'),
        ('    """Return more."""\n', ""),
        ('"""A class."""', "'''Another text.'''"),
        ('"""A module."""', '"""Something else."""'),
        ("maths.double(x) + 1", "(\n        maths.double(x)\n        + 1\n    )"),
        ('"thing"', "'thing'"),
        ('"thing"', 'u"thing"'),
        ("x: int", "x: int,"),
        ("x: int", "x: float"),
        (") -> int", ") -> float"),
        ('"too small", "take more"', 'f"{x} is too small", "take more of them"'),
        ("async def other() -> None", "async def other(y=2) -> None"),  # nothing reaches it
        ("from model import maths", "import os\nfrom model import maths"),
    ],
)
def test_a_cosmetic_edit_changes_nothing(project: Path, old: str, new: str) -> None:
    assert changed(project, "pipeline/stage_a.py", old, new) == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pipeline/stage_a.py", "+ 1", "+ 2"),
        ("pipeline/stage_a.py", "+ 1", "- 1"),
        ("pipeline/stage_a.py", '"thing"', '"thin g"'),
        ("pipeline/stage_a.py", "least: int", "least: float"),  # a class may read its annotations
        ("pipeline/stage_a.py", "raise PipelineError", "raise ValueError"),
        ("pipeline/stage_a.py", "class Thing", "print('imported')\n\n\nclass Thing"),
        ("pipeline/stage_a.py", "class Thing", "for n in '12':\n    print(n)\n\n\nclass Thing"),
        ("pipeline/stage_a.py", "x: int", "x: int = 3"),
        ("pipeline/stage_a.py", "return maths", "x += None or 1\n    return maths"),
        ("model/maths.py", "two() * x", "two() * x * 1"),
        ("model/deep/numbers.py", "one() + one()", "one() + 2"),
        ("model/roots.py", "return 1", "return True"),
        ("model/__init__.py", "", "print('imported')\n"),
    ],
)
def test_a_real_edit_names_its_file(project: Path, name: str, old: str, new: str) -> None:
    assert changed(project, name, old, new) == [name]


@pytest.mark.parametrize(("home", "counts"), [("model.errors", False), ("model.maths", True)])
def test_which_messages_count_is_decided_by_the_module_of_the_error(
    project: Path, home: str, *, counts: bool
) -> None:
    path = project / f"{home.replace('.', '/')}.py"
    path.write_text(
        (path.read_text() if path.exists() else "") + "class SizeError(Exception): ...\n"
    )
    edit(
        project,
        "pipeline/stage_a.py",
        "from pipeline.errors import PipelineError",
        f"from {home} import SizeError",
    )
    edit(project, "pipeline/stage_a.py", "raise PipelineError", "raise SizeError")
    noticed = changed(project, "pipeline/stage_a.py", "too small", "much too small")
    assert noticed == (["pipeline/stage_a.py"] if counts else [])


def test_what_is_not_imported_does_not_count(project: Path) -> None:
    assert changed(project, "model/unused.py", "1", "2") == []
    assert changed(project, "pipeline/errors.py", "...", "x = 1") == []


def test_a_new_import_brings_what_it_names(project: Path) -> None:
    new = "from model.unused import more\n    return two() * more * x"
    found = changed(project, "model/maths.py", "return two() * x", new)
    assert found == ["model/maths.py", "model/unused.py"]


def test_two_names_that_change_places_are_noticed(project: Path) -> None:
    for name, value in (("one", 1), ("two", 2)):
        (project / f"model/{name}_way.py").write_text(f"def way():\n    return {value}\n")
    imports = "from model.one_way import way as a\nfrom model.two_way import way as b\n"
    (project / "model/maths.py").write_text(f"{imports}def double(x):\n    return a() - b()\n")
    found = changed(project, "model/maths.py", "way as a\nfrom", "way as c\nfrom")
    assert found == ["model/maths.py", "model/one_way.py"]
    edit(project, "model/maths.py", "as b", "as a")
    before = code_digests("pipeline.stage_a", "stage", project)
    edit(project, "model/maths.py", "as c", "as b")
    assert code_digests("pipeline.stage_a", "stage", project) != before


def test_a_moved_file_is_the_same_code_and_is_watched_at_its_new_place(project: Path) -> None:
    before = code_digests("pipeline.stage_a", "stage", project)
    (project / "model/inner").mkdir()
    (project / "model/inner/__init__.py").touch()
    (project / "model/maths.py").rename(project / "model/inner/sums.py")
    edit(project, "pipeline/stage_a.py", "from model import maths", "from model.inner import sums")
    edit(project, "pipeline/stage_a.py", "maths.double", "sums.double")
    edit(project, "model/inner/sums.py", "model.deep", "model.deep.numbers")
    after = code_digests("pipeline.stage_a", "stage", project)
    assert set(before) ^ set(after) == {"model/maths.py", "model/inner/sums.py"}
    assert after["model/inner/sums.py"] == before["model/maths.py"]
    assert changed(project, "model/inner/sums.py", "* x", "* x * 1") == ["model/inner/sums.py"]


def test_the_digest_is_the_same_under_every_python() -> None:
    """A change here makes every artifact stale."""
    facts = read_facts(SOURCE.encode(), "pipeline.stage_a", "pipeline/stage_a.py")
    assert facts.definitions["stage"].digest == "4a1f709e8d790a3402784427419a8359"
    assert facts.definitions["stage"].names == [
        "PipelineError",
        "Thing.least",
        "int",
        "maths.double",
        "x",
    ]
    assert facts.imports["maths"] == [("model", "maths")]
    assert facts.modules == [
        "model",
        "model.maths",
        "pipeline.errors",
        "pipeline.errors.PipelineError",
    ]


def test_what_is_remembered_is_never_out_of_date(project: Path, tmp_path: Path) -> None:
    """A process that may write byte code remembers digests; the next one takes them up."""
    (project / "pipeline/engine").mkdir()
    for name in ("__init__.py", "code_identity.py", "code_facts.py"):
        shutil.copy(ROOT / "pipeline/engine" / name, project / "pipeline/engine" / name)
    script = (
        "import json; from pipeline.engine.code_identity import code_digests;"
        "print(json.dumps(code_digests('pipeline.stage_a', 'stage')))"
    )

    def ask(*flags: str) -> dict[str, str]:
        command = [sys.executable, *flags, "-c", script]
        environment = {"PYTHONPYCACHEPREFIX": str(tmp_path / "pyc")}
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    def memory() -> list[Path]:
        return list((tmp_path / "pyc").rglob("*.facts.json"))

    first = ask("-B")
    assert memory() == []
    assert ask() == first
    (kept,) = memory()
    assert len(json.loads(kept.read_text())) >= len(first)
    assert ask() == first
    edit(project, "model/roots.py", "return 1", "return 2")
    second = ask()
    assert [path for path in first if first[path] != second[path]] == ["model/roots.py"]
    kept.write_text("{torn")
    assert ask() == second


# -- the project itself -------------------------------------------------------------------------


def test_every_name_on_the_list_of_infrastructure_exists() -> None:
    places = [ROOT / name.replace(".", "/") for name in INFRASTRUCTURE]
    assert [p for p in places if not p.is_dir() and not p.with_suffix(".py").is_file()] == []


def test_every_stage_has_code_and_none_of_it_is_infrastructure() -> None:
    no_identity = tuple(f"{name}." for name in INFRASTRUCTURE)
    for stage in DAG:
        closure = code_digests(stage.module, stage.name, also=stage.code_with(preset("demo")))
        assert f"{stage.module.replace('.', '/')}.py" in closure
        modules = {path[:-3].replace("/", ".") for path in closure}
        assert not {name for name in modules if f"{name}.".startswith(no_identity)}
        assert {path.split("/")[0] for path in closure} <= set(PACKAGES)


@pytest.mark.parametrize(
    ("path", "notice"),
    [
        ("model/projectors.py", {"pretrain", "finetune", "evaluate"}),
        ("model/blocks.py", {"pretrain", "finetune", "evaluate"}),
        ("pipeline/data/filters.py", {"examples"}),
        ("pipeline/data/datasets/shapes/rendering.py", {"images", "conversations"}),
        ("storage/archives/archives.py", {"images"}),
    ],
)
def test_an_edit_is_noticed_by_these_stages_and_what_follows(path: str, notice: set[str]) -> None:
    recipe = preset("demo")
    closures = {s.name: code_digests(s.module, s.name, also=s.code_with(recipe)) for s in DAG}
    assert {name for name, closure in closures.items() if path in closure} == notice


def test_what_the_demo_draws_and_says_is_none_of_the_code_of_real_datasets() -> None:
    for name in ("coco", "photos"):
        recipe = preset(name)
        for stage in DAG:
            closure = code_digests(stage.module, stage.name, also=stage.code_with(recipe))
            assert not [path for path in closure if "datasets/shapes" in path]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project's code."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def identities(checkout: Path) -> dict[str, list[str]]:
    recipe = preset("demo")
    return {
        s.name: sorted(code_digests(s.module, s.name, checkout, s.code_with(recipe)).values())
        for s in DAG
    }


def noticing(checkout: Path, name: str, old: str, new: str) -> set[str]:
    before = identities(checkout)
    edit(checkout, name, old, new)
    after = identities(checkout)
    return {stage for stage in before if before[stage] != after[stage]}


def test_a_column_of_the_metrics_is_noticed_where_they_are_made(checkout: Path) -> None:
    start = "METRICS = pa.schema(\n    [\n"
    more = f'{start}        ("unit", pa.string()),\n'
    assert noticing(checkout, "pipeline/data/schemas.py", start, more) == {"evaluate"}


def test_the_wording_of_questions_is_noticed_by_conversations_alone(checkout: Path) -> None:
    old, new = '"Describe the {key}."', '"Please describe the {key}."'
    assert noticing(checkout, "pipeline/data/datasets/shapes/wording.py", old, new) == {
        "conversations"
    }


def test_moving_files_re_runs_nothing_and_editing_one_what_depends_on_it(checkout: Path) -> None:
    before = identities(checkout)
    for package, name in (
        ("model", "blocks"),
        ("pipeline.data", "schemas"),
        ("storage", "tables"),
    ):
        folder = checkout / package.replace(".", "/")
        (folder / "inner").mkdir()
        (folder / "inner/__init__.py").touch()
        (folder / f"{name}.py").rename(folder / f"inner/{name}.py")
        for path in checkout.rglob("*.py"):
            old, new = f"from {package}.{name} import", f"from {package}.inner.{name} import"
            path.write_text(path.read_text().replace(old, new))
    assert identities(checkout) == before
    old, new = "class ResidualMlp(nn.Module):", "class ResidualMlp(nn.Identity):"
    found = noticing(checkout, "model/inner/blocks.py", old, new)
    assert found == {"pretrain", "finetune", "evaluate"}
