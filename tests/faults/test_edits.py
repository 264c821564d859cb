"""Edits of the code: which stages of a finished run they make stale, and how one keeps them."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults.conftest import ROOT, Reference, environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
AFTER_EXAMPLES = {"examples", "pretrain", "finetune", "evaluate", "publish"}


class Checkout:
    """A copy of the project that can be edited, and the command line in it."""

    def __init__(self, folder: Path, store: Path, changes: Mapping[str, object]) -> None:
        self.folder, self.store = folder, store
        self.sets = [
            part for path, value in changes.items() for part in ("--set", f"{path}={value}")
        ]
        for package in ("flows", "pipeline", "model", "storage"):
            shutil.copytree(
                ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
            )

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1, (name, text.count(old))
        path.write_text(text.replace(old, new))

    def run(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "flows.cli", *arguments, "--store", str(self.store)]
        done = subprocess.run(
            command, cwd=self.folder, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stale(self) -> dict[str, str]:
        """Return the stages that are not fresh, with the reason."""
        rows = json.loads(self.run("plan", "--format", "json", *self.sets))
        return {row["stage"]: row["reason"] for row in rows if row["status"] != "fresh"}


@pytest.fixture
def checkout(reference: Reference, tmp_path: Path, tiny: Mapping[str, object]) -> Checkout:
    shutil.copytree(reference.store, tmp_path / "store", ignore=shutil.ignore_patterns("stamps"))
    return Checkout(tmp_path / "code", tmp_path / "store", tiny)


def test_a_comment_re_runs_nothing(checkout: Checkout) -> None:
    assert checkout.stale() == {}
    for path in checkout.folder.rglob("*.py"):
        path.write_text(f"{path.read_text()}\n# Nothing but a remark.\n")
    assert checkout.stale() == {}


def test_the_plan_of_a_finished_run_imports_nothing_heavy(checkout: Checkout) -> None:
    code = (
        "import sys; from flows.cli import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'prefect', 'lightning', 'transformers', 'open_clip', 'duckdb',"
        " 'pyarrow', 'numpy', 'fsspec'};"
        "print('imported', sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "plan", "--store", str(checkout.store), *checkout.sets]
    done = subprocess.run(
        command, cwd=checkout.folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" fresh ") == 9
    assert done.stdout.splitlines()[-1] == "imported []"


def test_a_filter_re_runs_the_examples_and_what_follows(checkout: Checkout) -> None:
    path = "pipeline/data/filters.py"
    checkout.edit(path, '("empty", "caption = \'\'"),', '("blank", "caption = \'\'"),')
    found = checkout.stale()
    assert set(found) == AFTER_EXAMPLES
    assert found["examples"] == f"code changed: `{path}`"
    assert found["pretrain"] == "depends on examples"


def test_a_projector_re_runs_the_training_and_what_follows_unless_it_is_accepted(
    checkout: Checkout,
) -> None:
    path = "model/blocks.py"
    checkout.edit(
        path, "self.down = nn.Linear(width, width)", "self.down = nn.Linear(width, width, True)"
    )
    found = checkout.stale()
    assert set(found) == AFTER_EXAMPLES - {"examples"}
    assert found["pretrain"] == f"code changed: `{path}`"
    assert f"code changed: `{path}`" in checkout.run("accept", "pretrain", *checkout.sets)
    accepted = checkout.run("accept", "--all", *checkout.sets)
    assert re.findall(r"^(\w+): .*model/blocks", accepted, re.MULTILINE) == ["finetune", "evaluate"]
    assert checkout.stale() == {}
    assert "every file is as committed" in checkout.run("verify")
    assert "nothing to do" in checkout.run("run", "--wandb", "disabled", *checkout.sets)


def test_a_changed_field_names_itself(checkout: Checkout) -> None:
    checkout.sets += ["--set", "examples.max_tokens=20"]
    found = checkout.stale()
    assert set(found) == AFTER_EXAMPLES
    assert "field `examples.max_tokens`" in found["examples"]
    assert found["examples"].endswith("→ 20")
