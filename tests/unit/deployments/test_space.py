"""The folder of a Hugging Face Space: it holds what it imports, and nothing else of ours."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deployments.space.assemble import ROOT, assemble, main
from pipeline.errors import PipelineError

SPACE = ROOT / "deployments" / "space"
OURS = {"deployments", "flows", "pipeline", "model", "storage"}


@pytest.fixture
def space(tmp_path: Path) -> Path:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_text("{}")
    assemble(tmp_path / "space", str(bundle))
    return tmp_path / "space"


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_a_space_holds_every_module_of_ours_that_it_imports(space: Path) -> None:
    for path in space.rglob("*.py"):
        for name in imports(path):
            if name.partition(".")[0] in OURS:
                assert (space / f"{name.replace('.', '/')}.py").is_file(), f"{path}: {name}"


def test_a_space_needs_neither_a_store_nor_prefect(space: Path) -> None:
    needed = {name.partition(".")[0] for path in space.rglob("*.py") for name in imports(path)}
    assert not needed & {"prefect", "fsspec", "duckdb", "pipeline", "storage", "cyclopts", "wandb"}


def test_what_a_space_imports_is_in_its_requirements(space: Path) -> None:
    lines = (space / "requirements.txt").read_text().split()
    named = {re.split(r"[\[>]", line)[0].lower().replace("_", "-") for line in lines}
    aliases = {"pil": "pillow", "open-clip": "open-clip-torch", "huggingface-hub": "transformers"}
    aliases |= {"starlette": "gradio", "numpy": "torchvision"}
    wanted = {name.partition(".")[0] for path in space.rglob("*.py") for name in imports(path)}
    for name in sorted(wanted - OURS - set(sys.stdlib_module_names)):
        dashed = name.lower().replace("_", "-")
        assert aliases.get(dashed, dashed) in named, name


def test_the_requirements_are_the_projects_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = {*project["dependencies"], *project["optional-dependencies"]["chat"]}
    assert set((SPACE / "requirements.txt").read_text().split()) <= own


def test_the_header_is_what_the_hub_reads() -> None:
    header = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio"
    assert (SPACE / header["app_file"]).is_file()
    assert len(header["short_description"]) <= 60  # the hub refuses a longer one
    for colour in (header["colorFrom"], header["colorTo"]):
        assert colour in {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def test_a_model_of_the_hub_is_named_not_copied(tmp_path: Path) -> None:
    assemble(tmp_path / "space", "hf://owner/name")
    assert not (tmp_path / "space" / "bundle").exists()
    app = (tmp_path / "space" / "app.py").read_text()
    assert 'os.environ.get("PHIVISION_BUNDLE") or "hf://owner/name"' in app
    ast.parse(app)
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "F",
        str(tmp_path / "space" / "app.py"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="not empty"):
        assemble(tmp_path, "hf://owner/name")
    with pytest.raises(PipelineError, match="not a bundle"):
        assemble(tmp_path / "space", str(tmp_path))
    with pytest.raises(SystemExit, match="is not a repository"):
        main(["hf://wrong", "hf://owner/name"])
