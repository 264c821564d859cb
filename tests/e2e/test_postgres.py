"""The server on a real PostgreSQL: the database is made, migrated and used by a run."""

import asyncio
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from deployments.server import create_database
from pipeline.engine.dag import DAG
from tests.e2e.prefect_service import AUTH, Service
from tests.e2e.secret_search import files_with

pytestmark = [pytest.mark.e2e, pytest.mark.services, pytest.mark.timeout(3000)]

PASSWORD = "planted-database-Xk4Tq9"


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

    def url(self, name: str, user: str = "tester") -> str:
        """Return the URL of a database."""
        return f"postgresql://{user}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def ask(self, *statements: str) -> list[str]:
        """Run statements and return the first column of what the last one answers."""

        async def answer() -> list[str]:
            import asyncpg

            connection = await asyncpg.connect(self.url("postgres"))
            for statement in statements[:-1]:
                await connection.execute(statement)
            rows = await connection.fetch(statements[-1])
            await connection.close()
            return [row[0] for row in rows]

        return asyncio.run(answer())


def _as_somebody() -> list[str]:
    if os.geteuid() != 0:
        return []
    names = {entry.pw_name for entry in pwd.getpwall()}
    return ["runuser", "-u", "postgres" if "postgres" in names else "nobody", "--"]


def _program(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


@pytest.fixture(scope="module")
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
    (folder / "password").write_text(PASSWORD)
    login = ("-U", "tester", "-A", "scram-sha-256", "--pwfile", str(folder / "password"))
    try:
        running.call(initdb, "-D", str(running.folder), *login, "--no-sync")
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
        assert "created the database phivision_prefect" in service.logs()
        service.deploy()
        service.worker()
        run = service.submit("full-pipeline/demo", overrides=dict(tiny))
        state = service.finished(run)
        assert state["type"] == "COMPLETED", state["message"]
        assert set(service.stages(run)) == {stage.name for stage in DAG}
    finally:
        service.stop()
    assert not (tmp_path / "home" / "prefect.db").exists()
    secrets = {"database": PASSWORD, "server": AUTH.partition(":")[2]}
    assert files_with([tmp_path], secrets) == {}


def test_who_may_enter_only_the_named_database_can_use_it(
    postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    postgres.ask(
        f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'",
        "CREATE DATABASE guests OWNER guest",
        "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC",
        "SELECT 1",
    )
    asyncio.run(create_database(postgres.url("guests", "guest")))
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match=r"missing does not exist at .* be created") as caught:
        asyncio.run(create_database(postgres.url("missing", "guest")))
    assert PASSWORD not in str(caught.value)


def test_two_servers_that_start_at_once_make_one_database(postgres: Postgres) -> None:
    async def at_once() -> None:
        await asyncio.gather(*(create_database(postgres.url("both")) for _ in range(4)))

    asyncio.run(at_once())
    found = postgres.ask("SELECT datname FROM pg_database WHERE datname = 'both'")
    assert found == ["both"]


def test_a_wrong_password_is_one_line_that_does_not_repeat_it(postgres: Postgres) -> None:
    wrong = postgres.url("guests").replace(PASSWORD, "not-the-password")
    with pytest.raises(SystemExit, match="PREFECT_SERVER_DATABASE_CONNECTION_URL") as caught:
        asyncio.run(create_database(wrong))
    assert "not-the-password" not in str(caught.value)
