"""Start Prefect's own server for this machine: `python -m deployments.server`.

SQLite in Prefect's home by default. With PREFECT_SERVER_DATABASE_CONNECTION_URL set to a PostgreSQL
URL the database of that name is made if it is not there; the server migrates it when it starts.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from flows.ports import refuse_taken
from pipeline.errors import PipelineError

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the database and become the server."""
    parser = argparse.ArgumentParser(prog="python -m deployments.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    port = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
    parser.add_argument("--port", type=int, default=port)
    chosen = parser.parse_args(arguments)
    if chosen.host not in _LOOPBACK and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        parser.error(
            f"{chosen.host} is open to other machines, and whoever reaches the server can run "
            "things on its workers; set PREFECT_SERVER_API_AUTH_STRING=user:password first"
        )
    try:
        refuse_taken(chosen.host, chosen.port, "name another one with PREFECT_SERVER_API_PORT")
    except PipelineError as error:
        sys.exit(f"Prefect's server does not start: {error}")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # The page asks the server that it came from; by itself it would always ask port 4200.
    os.environ.setdefault("PREFECT_SERVER_UI_API_URL", "/api")
    if url := os.environ.get(DATABASE, ""):
        os.environ[DATABASE] = with_driver(url)
        if url.startswith("postgres"):
            asyncio.run(create_database(url))
    command = [sys.executable, "-m", "prefect", "server", "start"]
    command += ["--host", chosen.host, "--port", str(chosen.port)]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted


def with_driver(url: str) -> str:
    """Return a database URL as Prefect wants it, with the driver that it brings along."""
    scheme, separator, rest = url.partition("://")
    if scheme in {"postgres", "postgresql"}:
        return f"postgresql+asyncpg{separator}{rest}"
    return url


async def create_database(url: str) -> None:
    """Make the PostgreSQL database that a URL names, unless it is there.

    Args:
        url: `postgresql://USER:PASSWORD@HOST:PORT/NAME`, with or without a driver.

    Raises:
        SystemExit: The server cannot be reached, or the user may not make a database.
    """
    import asyncpg

    parts = urlsplit(url)
    name = unquote(parts.path.strip("/"))
    place = f"{parts.hostname}:{parts.port or 5432}"
    try:
        connection = await asyncpg.connect(
            host=parts.hostname,
            port=parts.port or 5432,
            user=unquote(parts.username or "postgres"),
            password=unquote(parts.password or ""),
            database="postgres",
        )
    except (OSError, asyncpg.PostgresError) as error:
        sys.exit(f"PostgreSQL at {place} refuses: {error}\n  → see {DATABASE}")
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            quoted = name.replace('"', '""')
            await connection.execute(f'CREATE DATABASE "{quoted}"')
            print(f"made the database {name} at {place}")  # noqa: T201 - a person is watching
    except asyncpg.PostgresError as error:
        sys.exit(f"the database {name} cannot be made at {place}: {error}")
    finally:
        await connection.close()


if __name__ == "__main__":
    main()
