"""The wheel holds what the documentation uses, wherever it is installed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("deployments", "flows", "model", "pipeline", "storage")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the files that git knows, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked("pyproject.toml", "README.md", "LICENSE", *PACKAGES):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(folder)],
        cwd=folder / "source",
        capture_output=True,
        check=True,
    )
    [made] = folder.glob("*.whl")
    return made


def tracked(*paths: str) -> list[str]:
    """The files of git below some paths, with those that are about to be added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *paths]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert set(tracked(*PACKAGES)) <= set(archive.namelist())


def test_an_installed_wheel_assembles_a_space_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    found = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-P", "-m", "deployments.space.assemble", "space", "hf://me/mine"]
    done = subprocess.run(
        command, cwd=tmp_path, env=found, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "space" / "README.md").read_text("utf-8").startswith("---")
    assert (tmp_path / "space" / "flows" / "chat" / "page.py").is_file()
    helped = [sys.executable, "-P", "-c", "from flows.cli import main; main(['--help'])"]
    shown = subprocess.run(
        helped, cwd=tmp_path, env=found, capture_output=True, text=True, check=False
    )
    assert "compare" in shown.stdout, shown.stderr
