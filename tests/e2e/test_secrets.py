"""Secrets of the environment are planted in the demo's run; here they are searched for."""

import base64
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.e2e.conftest import PLANTED
from tests.e2e.secret_search import files_with, traces

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000)]


def test_the_search_finds_what_is_there() -> None:
    assert traces(b"nothing", PLANTED) == []
    for name, secret in PLANTED.items():
        assert traces(f"key={secret};".encode(), PLANTED) == [name]
        assert traces(base64.b64encode(f"a key={secret};".encode()), PLANTED) == [name]


def test_no_secret_of_the_environment_is_written_anywhere(demo: tuple[Cli, str]) -> None:
    cli, printed = demo
    assert set(PLANTED.items()) <= set(cli.environment.items())
    assert traces(printed.encode(), PLANTED) == []
    folders = [cli.store, Path(cli.environment["PREFECT_HOME"])]
    names = {path.suffix for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert {".json", ".parquet", ".wandb", ".db"} <= names  # manifests, data, W&B, Prefect's logs
    assert files_with(folders, PLANTED) == {}
