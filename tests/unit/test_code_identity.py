"""Code identity: a comment re-runs nothing, a real edit exactly what can notice it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.code_identity import INFRASTRUCTURE, ROOMS, ROOT, code_digests, read_module
from pipeline.dag import DAG

SOURCE = '''
"""A module."""

from model import maths


def stage(x: int) -> int:
    """Return more."""
    # one more
    return maths.double(x) + 1


async def other() -> None:
    """Only a docstring."""


class Thing:
    """A class."""

    name = "thing"
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "pipeline/__init__.py": "",
        "pipeline/stage_a.py": SOURCE,
        "pipeline/errors.py": "class E(Exception): ...\n",
        "model/__init__.py": "",
        "model/maths.py": "def double(x):\n    from model.deep import two\n    return two() * x\n",
        "model/deep/__init__.py": "from .numbers import two\n",
        "model/deep/numbers.py": "from ..roots import one\ndef two():\n    return one() + one()\n",
        "model/roots.py": "import pipeline.errors\nimport json\n\ndef one():\n    return 1\n",
        "model/unused.py": "x = 1\n",
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
    before = code_digests("pipeline.stage_a", project)
    edit(project, name, old, new)
    after = code_digests("pipeline.stage_a", project)
    return sorted(path for path in {*before, *after} if before.get(path) != after.get(path))


def test_the_closure_follows_every_kind_of_import(project: Path) -> None:
    assert list(code_digests("pipeline.stage_a", project)) == [
        "model/__init__.py",
        "model/deep/__init__.py",
        "model/deep/numbers.py",
        "model/maths.py",
        "model/roots.py",
        "pipeline/__init__.py",
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
        ("pipeline/stage_a.py", "x: int", "x: int = 3"),
        ("pipeline/stage_a.py", "return maths", "x += None or 1\n    return maths"),
        ("model/maths.py", "two() * x", "two() * x * 1"),
        ("model/deep/numbers.py", "one() + one()", "2"),
        ("model/roots.py", "return 1", "return True"),
        ("model/__init__.py", "", "import os\n"),
    ],
)
def test_a_real_edit_names_its_file(project: Path, name: str, old: str, new: str) -> None:
    assert changed(project, name, old, new) == [name]


def test_what_is_not_imported_does_not_count(project: Path) -> None:
    assert changed(project, "model/unused.py", "1", "2") == []
    assert changed(project, "pipeline/errors.py", "...", "x = 1") == []


def test_a_new_import_brings_its_module(project: Path) -> None:
    found = changed(project, "model/maths.py", "def double", "import model.unused\n\ndef double")
    assert found == ["model/maths.py", "model/unused.py"]


def test_the_digest_is_the_same_under_every_python() -> None:
    """Python 3.10 to 3.13 gave this value; a change here makes every artifact stale."""
    digest, imports = read_module(SOURCE.encode(), "pipeline.stage_a", "pipeline/stage_a.py")
    assert digest == "aa2c99e7fcbf7f08877f109c739be076"
    assert imports == ["model", "model.maths"]


def test_what_is_remembered_is_never_out_of_date(project: Path, tmp_path: Path) -> None:
    """A process that may write byte code remembers digests; the next one takes them up."""
    shutil.copy(ROOT / "pipeline" / "code_identity.py", project / "pipeline" / "code_identity.py")
    script = (
        "import json; from pipeline.code_identity import code_digests;"
        "print(json.dumps(code_digests('pipeline.stage_a')))"
    )

    def ask(*flags: str) -> dict[str, str]:
        command = [sys.executable, *flags, "-c", script]
        environment = {"PYTHONPYCACHEPREFIX": str(tmp_path / "pyc")}
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    def memory() -> list[Path]:
        return list((tmp_path / "pyc").rglob("*.digests.json"))

    first = ask("-B")
    assert memory() == []
    assert ask() == first
    (kept,) = memory()
    assert len(json.loads(kept.read_text())) == len(first)
    assert ask() == first
    edit(project, "model/roots.py", "return 1", "return 2")
    second = ask()
    assert [path for path in first if first[path] != second[path]] == ["model/roots.py"]
    kept.write_text("{torn")
    assert ask() == second


# -- the project itself -------------------------------------------------------------------------


def test_every_name_on_the_list_of_infrastructure_exists() -> None:
    missing = [
        name for name in INFRASTRUCTURE if not (ROOT / f"{name.replace('.', '/')}.py").is_file()
    ]
    assert missing == []


def test_every_stage_has_code_and_none_of_it_is_infrastructure() -> None:
    for stage in DAG:
        closure = code_digests(stage.module)
        assert f"pipeline/{stage.name}.py" in closure
        assert not {path[:-3].replace("/", ".") for path in closure} & INFRASTRUCTURE
        assert {path.split("/")[0] for path in closure} <= set(ROOMS)


@pytest.mark.parametrize(
    ("path", "notice"),
    [
        ("model/projectors.py", {"pretrain", "finetune", "evaluate", "publish"}),
        ("model/blocks.py", {"pretrain", "finetune", "evaluate", "publish"}),
        ("pipeline/filters.py", {"examples"}),
        ("pipeline/rendering.py", {"images", "conversations"}),
        ("storage/archives.py", {"images"}),
    ],
)
def test_an_edit_is_noticed_by_these_stages_and_what_follows(path: str, notice: set[str]) -> None:
    assert {stage.name for stage in DAG if path in code_digests(stage.module)} == notice
