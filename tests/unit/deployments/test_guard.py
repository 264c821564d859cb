"""The guard of a server without a password: this machine and its own page, and nobody else."""

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deployments.guard import Guard, is_own


def hello(request: object) -> PlainTextResponse:
    return PlainTextResponse("hello")


APP = Guard(Starlette(routes=[Route("/", hello)]))


def answer(**headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(APP)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4200") as it:
            return await it.get("/", headers=headers)

    return asyncio.run(ask())


def test_a_program_of_this_machine_is_answered() -> None:
    assert answer().text == "hello"


def test_who_is_refused_is_told_what_to_do() -> None:
    refused = answer(Origin="https://elsewhere.example")
    assert refused.status_code == 403
    assert "PREFECT_SERVER_API_AUTH_STRING" in refused.text


@pytest.mark.parametrize("host", ["127.0.0.1:4200", "localhost:4200", "[::1]:4200", "localhost"])
def test_the_page_of_the_server_itself_is_answered(host: str) -> None:
    assert is_own(Headers({"host": host}))
    assert is_own(Headers({"host": host, "origin": f"http://{host}"}))


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("elsewhere.example:4200", "http://elsewhere.example:4200"),  # its name points at us
        ("127.0.0.1.elsewhere.example", None),
        ("127.0.0.1@elsewhere.example", None),
        ("", None),
        ("[", None),
        ("127.0.0.1:4200", "https://elsewhere.example"),
        ("127.0.0.1:4200", "http://127.0.0.1:8000"),
        ("127.0.0.1:4200", "http://127.0.0.1:4200.elsewhere.example"),
        ("127.0.0.1:4200", "null"),
        ("127.0.0.1:4200", ""),
        ("127.0.0.1:4200", "http://["),
    ],
)
def test_pages_of_others_are_refused(host: str, origin: str | None) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    assert not is_own(Headers(headers))
