"""What the README shows works: its commands are taken from the file and run on the demo."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Cli

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000)]

README = (ROOT / "README.md").read_text()
# These need a network, a GPU, a bucket or data of the reader's own; `plan` checks what can be
# checked of them below.
ELSEWHERE = ("run --preset coco", "run --preset small", "my-data")
# Commands of the prose that run for minutes, wait for a person, move what is published, or need
# other code than that of the run; tests of their own run them.
NOT_HERE = ("run", "compare", "chat", "serve", "explore", "sql", "rollback", "accept", "pull")
# What the prose leaves open, or would write beside the reader's own files.
OPEN = {
    "RUN_A": "latest",
    "RUN_B": "latest",
    "FILE.duckdb": "{folder}/catalog.duckdb",
    "my-model": "{folder}/my-model",
}


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("phivision ")]


def in_prose(start: str) -> list[str]:
    """Return what stands between backticks outside the blocks and begins so, on one line."""
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    found = [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", prose)]
    return sorted({each for each in found if each.startswith(start)})


def test_the_readme_shows_the_main_commands() -> None:
    shown = {command.split()[1] for command in commands()}
    assert {"run", "plan", "sql", "show", "ask", "caption", "scores", "recipe", "runs"} <= shown


@pytest.mark.parametrize("command", [c for c in commands() if not any(e in c for e in ELSEWHERE)])
def test_a_shown_command_works(demo: tuple[Cli, str], command: str, tmp_path: Path) -> None:
    from pipeline.data.datasets.shapes.drawing import draw
    from pipeline.data.datasets.shapes.scenes import make_scene

    photo = tmp_path / "photo.jpg"
    draw(make_scene(seed=7, index=1)).save(photo)
    arguments = shlex.split(command.replace("photo.jpg", str(photo)), comments=True)[1:]
    assert demo[0].ok(*arguments).strip()


@pytest.mark.parametrize(
    "command", [c for c in in_prose("phivision ") if c.split()[1] not in NOT_HERE]
)
def test_a_command_in_the_prose_works(demo: tuple[Cli, str], command: str, tmp_path: Path) -> None:
    for word, value in OPEN.items():
        command = command.replace(word, value.format(folder=tmp_path))
    assert demo[0].ok(*shlex.split(command)[1:]).strip()


@pytest.mark.parametrize("change", in_prose("--set "))
def test_a_change_in_the_prose_fits_the_recipe(change: str, tmp_path: Path) -> None:
    assert "never made" in Cli(tmp_path / "store").ok("plan", *shlex.split(change))


def test_the_two_first_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)


def test_the_small_preset_plans_without_network(tmp_path: Path) -> None:
    assert "never made" in Cli(tmp_path / "store").ok("plan", "--preset", "small")


def test_the_coco_preset_plans_without_network(tmp_path: Path) -> None:
    printed = Cli(tmp_path / "store").ok(
        "plan", "--preset", "coco", "--set", "finetune.method=full", "--set", "images.limit=80000"
    )
    assert "never made" in printed
