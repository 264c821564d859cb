"""What lies around a command does not change what it does: folders, proxies, homes, terminals."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import assignments
from tests.e2e.made_database import copy_database

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
PHIVISION = str(Path(sys.executable).with_name("phivision"))
NOBODY_THERE = "http://127.0.0.1:9"
PROXIES = {
    name: NOBODY_THERE
    for kind in ("http_proxy", "https_proxy", "all_proxy")
    for name in (kind, kind.upper())
}
# What a user may have set; some of it only matters to the child that another command starts.
SPARED = ("NO_PROXY", "no_proxy", "PYTHONPATH", "PYTHONSAFEPATH")
# A user that the machine does not know, wherever and as whomever the tests run.
WITHOUT_HOME = """
import os, pwd, sys
os.environ.pop("HOME", None)
def unknown(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
from flows.cli import main
main()
"""


@pytest.fixture
def broken(tmp_path: Path) -> list[str]:
    """A recipe whose first stage fails at once, so that a run of it is little but its server."""
    data, talk = tmp_path / "data", tmp_path / "talk.json"
    (data / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (data / split).mkdir()
        (data / "annotations" / f"captions_{split}.json").write_text('{"images": 3}')
    talk.write_text("[]")
    return assignments(
        {
            "images.source.kind": "folder",
            "images.source.root": data,
            "conversations.source.kind": "file",
            "conversations.source.path": talk,
            "conversations.source.sha256": "null",
        }
    )


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    """A folder of somebody's own modules that are named like ours and like Python's."""
    folder = tmp_path / "mine"
    for name in ("flows/__init__.py", "storage/__init__.py", "pipeline.py", "model.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise RuntimeError('not yours')\n")
    (folder / "random.py").write_text("raise RuntimeError('not yours')\n")
    return folder


def run(
    folder: Path, command: list[str], variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in SPARED}
    return subprocess.run(
        command,
        cwd=folder,
        env={**inherited, "PHIVISION_STORE": "store", "PHIVISION_WANDB": "disabled", **variables},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_a_run_has_its_server_whatever_lies_around_it(
    broken: list[str], shadows: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    copy_database(home)
    (home / "profiles.toml").write_text('active = "mine"\n[profiles.mine]\n')
    variables = {
        **PROXIES,
        "NO_PROXY": "example.org",
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_API_AUTH_STRING": "planner:secret",
        "PREFECT_SERVER_API_BASE_PATH": "/planner",
        "PYTHONIOENCODING": "ascii",
    }
    done = run(shadows, [PHIVISION, "run", *broken], variables)
    assert done.returncode == 1
    assert "captions_train2017.json is JSON but not COCO's format" in done.stderr
    assert "Traceback" not in done.stderr
    with closing(sqlite3.connect(home / "prefect.db")) as database, database:
        [runs] = database.execute("SELECT count(*) FROM flow_run").fetchall()
    assert runs == (1,)  # its server really was one of Prefect's


def newer(home: Path) -> Mapping[str, str]:
    """A home whose database a later Prefect has changed."""
    with closing(sqlite3.connect(home / "prefect.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
    return {}


def elsewhere(home: Path) -> Mapping[str, str]:
    """A database that nobody serves."""
    del home
    url = "postgresql+asyncpg://me:hidden-word@127.0.0.1:9/prefect"
    return {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}


@pytest.mark.parametrize(
    ("database", "cause", "remedy"),
    [(newer, "Can't locate revision", "set PREFECT_HOME"), (elsewhere, "9", "PREFECT_API_URL")],
)
def test_a_server_that_cannot_start_is_told_with_its_cause_and_a_remedy(
    database: object, cause: str, remedy: str, broken: list[str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert callable(database)
    variables = {"PREFECT_HOME": str(home), **database(home)}
    done = run(tmp_path, [PHIVISION, "run", *broken], variables)
    assert done.returncode == 1
    started, told, arrow = done.stderr.strip().splitlines()
    assert started.startswith("starting Prefect")
    assert told.startswith("phivision: Prefect's own server cannot start")
    assert cause in told
    assert remedy in arrow
    assert "hidden-word" not in done.stderr


def test_a_user_without_a_home_is_told_to_set_it(broken: list[str], tmp_path: Path) -> None:
    home = {"PREFECT_HOME": str(tmp_path / "home")}
    done = run(tmp_path, [sys.executable, "-c", WITHOUT_HOME, "run", *broken], home)
    assert done.returncode == 1
    assert "set HOME" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_output_survives_a_terminal_without_utf_8(
    variables: Mapping[str, str], tmp_path: Path
) -> None:
    query = "SELECT chr(233) || chr(8594) || 'x' AS word"
    shown = run(tmp_path, [PHIVISION, "sql", query], variables)
    assert shown.returncode == 0, shown.stderr
    assert "??x" in shown.stdout
    written = run(
        tmp_path, [PHIVISION, "sql", query, "--format", "csv", "--output", "rows.csv"], variables
    )
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "rows.csv").read_text("utf-8") == "word\né→x\n"
    planned = run(tmp_path, [PHIVISION, "recipe"], variables)
    assert planned.returncode == 0, planned.stderr


def test_children_import_what_we_import_whatever_lies_in_their_folder(shadows: Path) -> None:
    from pipeline.interpreter import child_environment

    done = run(shadows, [sys.executable, "-m", "flows.cli", "recipe"], child_environment())
    assert done.returncode == 0, done.stderr
    assert "pretrain.learning_rate" in done.stdout
