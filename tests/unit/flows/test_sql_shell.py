"""The catalog's shell: statements, its own commands, and a real terminal with history."""

import io
import os
import pty
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.cli import main
from storage.store.artifacts import ArtifactStore
from tests.support.small_store import build_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return build_store(tmp_path_factory.mktemp("shell"))


@pytest.fixture
def typed(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Return what the shell prints when a text comes through a pipe, and after it the status."""

    def answer(text: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        status = 0
        try:
            main(["sql", "--store", store.uri])
        except SystemExit as ended:
            status = ended.code
        return f"{capsys.readouterr().out}status {status}"

    return answer


def test_the_shell_answers_statements_of_several_lines(typed: Callable[[str], str]) -> None:
    text = typed("SELECT split,\n count(*) AS n\nFROM images GROUP BY ALL ORDER BY n;\n.quit\n")
    assert "validation  2" in text
    assert text.index("validation") < text.index("train") < text.rindex("test")


def test_the_shell_goes_on_after_errors_and_refuses_writing(typed: Callable[[str], str]) -> None:
    text = typed("SELECT nothing;\nDROP VIEW images;\nSELECT 40 + 2 AS sum;\n")
    assert 'Referenced column "nothing"' in text
    assert "the catalog is read-only" in text
    assert "42" in text
    assert text.endswith("status 1")
    assert typed("SELECT 1;\n").endswith("status 0")
    assert typed("SELECT nothing").endswith("status 1")


def test_the_last_statement_of_a_piped_text_needs_no_semicolon(
    typed: Callable[[str], str],
) -> None:
    assert "42" in typed("SELECT 40 + 2 AS sum")
    text = typed("SELECT 40 + 2 AS sum; -- the sum\nSELECT 50 + 7 AS other;\n")
    assert "exactly one" in text  # `;` ends a statement only where it ends a line
    text = typed("SELECT 40 + 2 AS sum;\n-- the end\n")
    assert "42" in text
    assert "exactly one" not in text


def test_the_shell_names_views_and_their_columns(
    store: ArtifactStore, typed: Callable[[str], str]
) -> None:
    text = typed(".views\n.schema captions\n.schema nowhere\n.what\nSHOW TABLES;\n")
    assert text.count("conversations") >= 2
    assert "caption_id" in text
    assert "there is no view nowhere" in text
    assert "unknown command .what" in text


def test_the_shell_prints_in_three_modes_and_exports_the_last_statement(
    tmp_path: Path, typed: Callable[[str], str]
) -> None:
    text = typed(
        ".export a.csv\nSELECT 1 AS one, 'x' AS two;\n.mode csv\nSELECT 3 AS three;\n.mode json\n"
        f"SELECT [4, 5] AS list;\n.mode html\n.export {tmp_path}/a.parquet\n"
        f".export {tmp_path}/a.csv\n.export {tmp_path}/a.txt\n.export {tmp_path}/no/a.csv\n"
    )
    assert "run a statement first" in text
    assert "one  two" in text
    assert "three\n3\n" in text
    assert '"list": [\n   4,' in text
    assert "printed as json; .mode takes table, csv, json" in text
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == [{"list": [4, 5]}]
    assert (tmp_path / "a.csv").read_text() == 'list\n"[4, 5]"\n'
    assert "a.txt: end its name with" in text
    assert "no/a.csv: No such file or directory" in text
    assert text.endswith("status 1")


# -- a terminal ------------------------------------------------------------------------------


def talk(store: ArtifactStore, state: Path, keys: list[str]) -> str:
    """Return what a terminal shows when these keys are pressed, each after a prompt."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"XDG_STATE_HOME": str(state), "TERM": "dumb"}
        os.execv(sys.executable, [sys.executable, "-m", "flows.cli", "sql", "--store", store.uri])
    shown, waiting, end = "", list(keys), time.monotonic() + 120
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            shown += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # it has ended
            break
        if waiting and shown.endswith("sql> "):
            os.write(terminal, waiting.pop(0).encode())
            shown += "\n"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, shown
    return shown


def test_a_terminal_remembers_lines_of_earlier_shells_and_completes_names(
    store: ArtifactStore, tmp_path: Path
) -> None:
    pytest.importorskip("readline")
    assert "5000" in talk(store, tmp_path, ["SELECT 4999 + 1 AS sum;\n", ".quit\n"])
    up = "\x10"  # Ctrl-P, the line before
    shown = talk(
        store, tmp_path, [f"{up}{up}\n", "SELECT count(*) AS n FROM artif\t;\n", ".quit\n"]
    )
    assert "5000" in shown
    assert "FROM artifacts" in shown
    assert "no view" not in shown
