"""What commands print at 80 columns, compared with texts in tests/golden.

After a change of wording, this writes them anew; `git diff tests/golden` then shows what changed:
`PHIVISION_GOLDEN=write .venv/bin/python -m pytest tests/e2e/test_golden_texts.py`

What another machine may change is replaced: a decimal by N.N, a time by TIME, a size by SIZE, a
device by DEVICE, a digest by HEX. Blanks that align columns become two, and sentences that were
broken over lines are one line.
"""

import os
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from flows.cli import main
from tests.conftest import assignments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
WIDTH = 80
REPLACED = (
    (r"\b\d[\d,.]* (s|min|h)\b", "TIME"),
    (r"\b\d[\d,.]* (MB|GB)\b", "SIZE"),
    (r"\b\d+\.\d+(e[+-]?\d+)?", "N.N"),
    (r"\bon (cpu|cuda)(, \d+ threads?)?", "on DEVICE"),
    (r"\n  (?=[^\s→])", " "),
    (r"\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,64}\b", "HEX"),
    (r"─+", "─"),
    (r"(?<=\S) {2,}", "  "),
    (r" +$", ""),
)

# By the name of the file. Texts that depend on what a model has learned are not among them.
STABLE = {
    "help": "--help",
    "help-of-plan": "plan --help",
    "help-of-ask": "ask --help",
    "plan-nothing-to-do": "plan TINY",
    "plan-a-changed-field": "plan TINY --set pretrain.learning_rate=7e-4",
    "plan-another-preset": "plan --preset coco",
    "plan-hardware": "plan --preset coco --hardware 80GB",
    "diff-of-equal-runs": "diff latest latest",
    "verify": "verify",
    "gc": "gc --dry-run",
    "sql-examples": 'sql "SELECT split, count(*) FROM examples GROUP BY ALL ORDER BY ALL"',
    "sql-drops": 'sql "SELECT reason, count(*) FROM drops GROUP BY ALL ORDER BY ALL"',
    "sql-describe": 'sql "DESCRIBE captions"',
    "sql-unknown-view": 'sql "SELECT * FROM caption"',
    "sql-that-writes": 'sql "DROP TABLE captions"',
    "unknown-command": "plam",
    "unknown-field": "plan --set pretrain.learning_rat=1",
    "unknown-run": "scores --run nope",
    "no-such-image": "ask nope.jpg What?",
    "no-such-image-id": "similar 12345678901",
    "no-such-bundle": "caption README.md --bundle nope",
    "nothing-at-work": "watch --once",
}
# Their tables fit, too, whatever the figures are.
OTHERS = (
    "runs",
    "scores",
    "scores --all",
    "show",
    "rollback --list",
    "recipe TINY",
    "recipe --diff demo coco",
    'sql "SUMMARIZE predictions"',
    'sql "SELECT * FROM predictions LIMIT 3"',
    'sql "SELECT * FROM runs"',
)


@pytest.fixture
def printed(
    tiny_store: Path,
    tiny: Mapping[str, object],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> "Printed":
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("PHIVISION_STORE", str(tiny_store))
    return Printed(tiny_store, tiny, capsys)


class Printed:
    """Runs commands in this process, on the tiny store."""

    def __init__(
        self, store: Path, tiny: Mapping[str, object], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._store, self._tiny, self._capsys = store, tiny, capsys

    def __call__(self, command: str) -> str:
        """Return what a command prints: its output, or its error if it ends with one."""
        words = shlex.split(command)
        if "TINY" in words:
            words = [word for word in words if word != "TINY"] + assignments(self._tiny)
        with suppress(SystemExit):
            main(words)
        printed = self._capsys.readouterr()
        return (printed.out or printed.err).replace(str(self._store), "STORE")


def normalised(text: str) -> str:
    """Return a text without what another machine may change."""
    for pattern, by in REPLACED:
        text = re.sub(pattern, by, text, flags=re.MULTILINE)
    return text


@pytest.mark.parametrize("name", STABLE)
def test_a_text_is_the_golden_one(name: str, printed: Printed) -> None:
    text, path = printed(STABLE[name]), GOLDEN / f"{name}.txt"
    assert not too_wide(text)
    if os.environ.get("PHIVISION_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(normalised(text))
    assert normalised(text) == path.read_text()


def too_wide(text: str) -> list[str]:
    """Return lines wider than the terminal, but for hints and errors, which are to be copied."""
    lines = [each for each in text.splitlines() if not each.lstrip().startswith("→")]
    return [each for each in lines if len(each) > WIDTH and not each.startswith("phivision: ")]


def test_every_golden_text_has_its_command() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(STABLE)


@pytest.mark.parametrize("command", OTHERS)
def test_no_table_is_wider_than_a_terminal(command: str, printed: Printed) -> None:
    text = printed(command)
    assert text.strip()
    assert not too_wide(text)
