"""The server on a real PostgreSQL: the database is made, migrated and used by a run."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.dag import DAG
from tests.e2e.prefect_service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.server, pytest.mark.timeout(3000)]


@dataclass(frozen=True)
class Postgres:
    """A database server of the test's own, in a folder of its own.

    Attributes:
        folder: Its data.
        port: On 127.0.0.1.
    """

    folder: Path
    port: int

    def call(self, *command: str) -> None:
        """Run one of PostgreSQL's programs, which refuse to be run by root."""
        done = subprocess.run(
            [*_as_somebody(), *command], cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://tester@127.0.0.1:{self.port}/{name}"


def _as_somebody() -> list[str]:
    if os.geteuid() != 0:
        return []
    names = {entry.pw_name for entry in pwd.getpwall()}
    return ["runuser", "-u", "postgres" if "postgres" in names else "nobody", "--"]


def _program(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


@pytest.fixture
def postgres() -> Generator[Postgres]:
    initdb, control = _program("initdb"), _program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path("/tmp") / f"phivision-postgres-{os.getpid()}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        running = Postgres(folder / "data", free.getsockname()[1])
    folder.mkdir()
    folder.chmod(0o777)
    try:
        running.call(initdb, "-D", str(running.folder), "-U", "tester", "-A", "trust", "--no-sync")
        options = f"-p {running.port} -k {folder} -h 127.0.0.1 -F"
        log = str(folder / "log")
        running.call(control, "-D", str(running.folder), "-o", options, "-l", log, "-w", "start")
        yield running
        running.call(control, "-D", str(running.folder), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_on_postgresql(
    postgres: Postgres, tmp_path: Path, tiny: Mapping[str, object]
) -> None:
    url = postgres.url("phivision_prefect")
    service = Service(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=url)
    try:
        service.server()
        assert "made the database phivision_prefect" in service.logs()
        service.deploy()
        service.worker()
        run = service.submit("full-pipeline/demo", overrides=dict(tiny))
        state = service.finished(run)
        assert state["type"] == "COMPLETED", state["message"]
        assert set(service.stages(run)) == {stage.name for stage in DAG}
    finally:
        service.stop()
    assert not (tmp_path / "home" / "prefect.db").exists()
