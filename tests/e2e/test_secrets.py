"""Secrets of the environment were planted in the demo's run; here they are searched for."""

import base64
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.e2e.conftest import PLANTED

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000)]


def traces(data: bytes) -> list[str]:
    """Return the names of the secrets that some bytes hold, as they are or in base64."""
    found = []
    for name, secret in PLANTED.items():
        plain = secret.encode()
        # Base64 of a text inside another begins at one of three offsets.
        coded = [base64.b64encode(bytes(n) + plain)[4 * (n > 0) + 2 : -4] for n in range(3)]
        if any(form in data for form in (plain, *coded)):
            found.append(name)
    return found


def test_the_search_finds_what_is_there() -> None:
    assert traces(b"nothing") == []
    for name, secret in PLANTED.items():
        assert traces(f"key={secret};".encode()) == [name]
        assert traces(base64.b64encode(f"a key={secret};".encode())) == [name]


def test_no_secret_of_the_environment_is_written_anywhere(demo: tuple[Cli, str]) -> None:
    cli, printed = demo
    assert set(PLANTED.items()) <= set(cli.environment.items())
    assert traces(printed.encode()) == []
    home = Path(cli.environment["PREFECT_HOME"])
    files = [path for folder in (cli.store, home) for path in folder.rglob("*") if path.is_file()]
    names = {path.suffix for path in files}
    assert {".json", ".parquet", ".wandb", ".db"} <= names  # manifests, data, W&B, Prefect's logs
    assert {
        str(path): traces(path.read_bytes()) for path in files if traces(path.read_bytes())
    } == {}
