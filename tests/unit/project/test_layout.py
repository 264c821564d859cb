"""The shape of the code itself: layers, sizes, annotations, names."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("flows", "pipeline", "model", "storage", "deployments")
MAX_FILE, MAX_FUNCTION = 350, 45


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_layers_are_kept() -> None:
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run([command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_file_has_outgrown_one_idea() -> None:
    long = {str(p): n for p in sources() if (n := len(p.read_text().splitlines())) > MAX_FILE}
    assert not long


def test_no_function_has_outgrown_one_idea() -> None:
    sizes = {
        f"{path}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in sources()
        for node in functions(path)
    }
    assert not {name: size for name, size in sizes.items() if size > MAX_FUNCTION}


def test_public_functions_are_documented() -> None:
    bare = [
        f"{path.name}:{node.name}"
        for path in sources()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare


def test_no_module_hides_a_package_or_the_standard_library() -> None:
    taken = {*PACKAGES, *sys.stdlib_module_names} - {"__init__"}
    # A name is only in danger where its folder is put on the path, so it must differ everywhere.
    clashes = [str(path.relative_to(ROOT)) for path in sources() if path.stem in taken]
    assert not clashes


def test_only_the_encoder_room_knows_open_clip() -> None:
    users = {
        p.relative_to(ROOT).as_posix() for p in sources() if "import open_clip" in p.read_text()
    }
    assert users == {"model/encoder.py", "model/text_encoder.py", "model/tiny_clip.py"}


@pytest.mark.parametrize("word", ["pickle.load", "trust_remote_code=True", "weights_only=False"])
def test_nothing_from_outside_is_executed(word: str) -> None:
    assert [str(path) for path in sources() if word in path.read_text()] == []


def test_help_is_quick_to_import() -> None:
    code = "import sys, flows.cli; print(sorted({'torch', 'prefect', 'duckdb'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
