"""The commands in blocks of the docs work.

Of those that run the DAG, the recipe is printed instead: a run takes minutes, and some need weights
or data of the reader's own.
"""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from flows.cli import main

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Tests of their own run these: a server's page, variants that train, metrics that need Java, an
# assistant to start from, and the README's report.
ELSEWHERE = ("deployments.md", "phivision compare", "--java", "--start", "phivision report")


def commands() -> list[str]:
    found = []
    for page in sorted(DOCS.glob("*.md")):
        blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        shown = [" ".join(line.split()) for line in lines if line.startswith("phivision ")]
        found += [f"{page.name}: {each}" for each in dict.fromkeys(shown)]
    return [each for each in found if not any(part in each for part in ELSEWHERE)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the docs name, where commands work."""
    Image.new("RGB", (64, 48), "red").save(tmp_path / "photo.jpg")
    rows = [f"photo.jpg,A red image number {number}." for number in range(8)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *rows]))
    (tmp_path / "mine.yaml").write_text("preset: photos\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_docs_works(
    command: str,
    folder: Path,
    tiny_store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PHIVISION_STORE", str(tiny_store))
    text, _, target = command.partition(": phivision ")[2].partition(" > ")
    words = shlex.split(text, comments=True)
    main(["recipe" if words[0] == "run" else words[0], *words[1:]])
    printed = capsys.readouterr().out
    assert printed.strip()
    if target:  # it is the file that the next command reads
        (folder / target).write_text(printed)
        main(["recipe", "--recipe", target])
        assert "pairs.csv" in capsys.readouterr().out
