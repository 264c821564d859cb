"""What a streamed response does for a client that leaves, without a server around it."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from flows.inference.answer import Answer
from flows.serve.app import Stream


def left(send_first: bool) -> tuple[bool, list[str]]:
    """Send a stream to a client that leaves; return whether its place is freed, and its texts."""
    begun: list[str] = []
    answer = Answer(str, 9, [], lambda piece: None)

    async def events() -> AsyncGenerator[str]:
        for text in ("one", "two"):
            begun.append(text)
            yield text

    async def call() -> None:
        gone, never = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if send_first and message["type"] == "http.response.start":
                return
            gone.set()
            await never.wait()  # what is sent to nobody

        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        await asyncio.wait_for(Stream(events(), answer.leave)(scope, receive, send), 30)

    asyncio.run(call())
    return answer.left, begun


def test_a_client_that_leaves_before_the_first_byte_frees_its_place() -> None:
    assert left(send_first=False) == (True, [])


def test_a_client_that_leaves_after_it_frees_its_place() -> None:
    assert left(send_first=True) == (True, ["one"])
