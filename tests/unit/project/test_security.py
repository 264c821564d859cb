"""The promises of SECURITY.md: each names a test that exists; and two that stand here."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "SECURITY.md").read_text().splitlines()
    if line.startswith("| ") and "::" in line
]


def test_the_table_is_read() -> None:
    assert len(ROWS) > 25
    assert all(len(row) == 3 and all(row) for row in ROWS)


@pytest.mark.parametrize("named", [row[2] for row in ROWS])
def test_every_threat_names_a_test_that_exists(named: str) -> None:
    path, _, name = named.strip("`").partition("::")
    tree = ast.parse((ROOT / path).read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert name in found


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::"])
def test_the_prefect_server_is_never_open_by_oversight(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deployments.server import main

    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["--host", host])
    assert caught.value.code == 2
    assert "PREFECT_SERVER_API_AUTH_STRING" in capsys.readouterr().err


def test_every_dependency_is_pinned_for_the_audit() -> None:
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["chat"]]
    wanted = {re.split(r"[\[><=;]", line)[0].strip().lower().replace("_", "-") for line in lines}
    assert wanted <= pinned
    assert "pip-audit" in (ROOT / "Makefile").read_text()
