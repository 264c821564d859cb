"""Start Prefect's own server for this machine: `python -m deployments.server`.

SQLite in Prefect's home by default. With PREFECT_SERVER_DATABASE_CONNECTION_URL set to a PostgreSQL
URL the database of that name is created if missing; the server migrates it when it starts.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from deployments.guard import Guard
from flows.commands.ports import refuse_taken
from flows.surroundings import LOOPBACK
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from asyncpg import Connection

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
AUTH = "PREFECT_SERVER_API_AUTH_STRING"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the database and run the server until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m deployments.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    port = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
    parser.add_argument("--port", type=int, default=port)
    chosen = parser.parse_args(arguments)
    if chosen.host not in LOOPBACK and not os.environ.get(AUTH):
        parser.error(
            f"{chosen.host} is reachable from other machines, and anyone who reaches the server "
            f"can run code on its workers; set {AUTH}=user:password first"
        )
    try:
        refuse_taken(chosen.host, chosen.port, "name another one with PREFECT_SERVER_API_PORT")
    except PipelineError as error:
        sys.exit(f"Prefect's server does not start: {error}")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # The UI calls the server that it was loaded from; by default it would always call port 4200.
    os.environ.setdefault("PREFECT_SERVER_UI_API_URL", "/api")
    # By default Prefect allows all origins, so any website open in a browser here could call it.
    os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", own_origins(chosen.port))
    if url := os.environ.get(DATABASE, ""):
        os.environ[DATABASE] = with_driver(url)
        if url.startswith("postgres"):
            asyncio.run(create_database(url))
    serve(chosen.host, chosen.port)


def own_origins(port: int) -> str:
    """Return the origins of the server's own page, in the form of Prefect's setting."""
    return ",".join(f"http://{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]"))


def serve(host: str, port: int) -> None:
    """Run the server; without a password it answers only this machine."""
    import uvicorn
    from prefect.server.api.server import create_app  # reads the environment

    app = create_app(final=True)
    guarded = app if os.environ.get(AUTH) else Guard(app)
    config = uvicorn.Config(guarded, host=host, port=port, log_level="warning", loop="asyncio")
    port_of_ours = config.bind_socket()  # exits with a message if the port is taken
    print(f"Prefect's UI: http://{host}:{port}", flush=True)  # noqa: T201 - for the terminal
    uvicorn.Server(config).run(sockets=[port_of_ours])


def with_driver(url: str) -> str:
    """Return a database URL with the driver that Prefect installs."""
    scheme, separator, rest = url.partition("://")
    if scheme in {"postgres", "postgresql"}:
        return f"postgresql+asyncpg{separator}{rest}"
    return url


async def create_database(url: str) -> None:
    """Create the PostgreSQL database that a URL names, unless it exists.

    Args:
        url: `postgresql://USER:PASSWORD@HOST:PORT/NAME`, with or without a driver.

    Raises:
        SystemExit: The server cannot be reached, or the user may not create a database.
    """
    import asyncpg

    parts = urlsplit(url)
    name, place = unquote(parts.path.strip("/")), f"{parts.hostname}:{parts.port or 5432}"
    try:
        # The database itself first: the user may not be allowed to connect to any other.
        await (await _connect(url, name)).close()
    except asyncpg.InvalidCatalogNameError:
        await _create(url, name, place)
    except (OSError, asyncpg.PostgresError) as error:
        sys.exit(f"PostgreSQL at {place} refuses: {error}\n  → see {DATABASE}")


async def _create(url: str, name: str, place: str) -> None:
    import asyncpg

    try:
        connection = await _connect(url, "postgres")
        try:
            quoted = name.replace('"', '""')
            await connection.execute(f'CREATE DATABASE "{quoted}"')
        finally:
            await connection.close()
    except (asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
        return  # another server, started at the same time, was faster
    except (OSError, asyncpg.PostgresError) as error:
        sys.exit(
            f"the database {name} does not exist at {place} and cannot be created: {error}\n"
            "  → create it by hand, or name an existing one"
        )
    print(f"created the database {name} at {place}", flush=True)  # noqa: T201 - for the terminal


async def _connect(url: str, database: str) -> "Connection":
    import asyncpg

    parts = urlsplit(url)
    return await asyncpg.connect(
        host=parts.hostname,
        port=parts.port or 5432,
        user=unquote(parts.username or "postgres"),
        password=unquote(parts.password or ""),
        database=database,
    )


if __name__ == "__main__":
    main()
