"""Middleware: who may ask, and how much may be sent, decided before a body is read."""

import hmac
import json
from typing import Any

from flows.serve.errors import RequestError
from flows.serve.limits import MEGABYTE, ServeLimits

_OPEN = ("/health",)


class Guard:
    """Checks the API key and the size of a body, also of one that does not state its length.

    Args:
        app: What answers.
        key: The key that clients send, "" where none is asked for.
        limits: Largest body.
    """

    def __init__(self, app: Any, key: str, limits: ServeLimits) -> None:
        self.app, self._key, self._limits = app, key, limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._key and scope["path"] not in _OPEN and not self._knows(scope):
            error = RequestError("the API key is missing or wrong", 401, code="invalid_api_key")
            await refuse(error, send)
            return
        taken = 0

        def is_large() -> bool:
            return taken > self._limits.body_bytes

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return {"type": "http.disconnect"} if is_large() else message

        async def noted(message: Any) -> None:
            if not is_large():
                await send(message)

        await self.app(scope, counted, noted)
        if is_large():
            most = self._limits.body_bytes / MEGABYTE
            await refuse(RequestError(f"the body is larger than {most:.0f} MB", 413), send)

    def _knows(self, scope: Any) -> bool:
        sent = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(sent, f"Bearer {self._key}".encode())


async def refuse(error: RequestError, send: Any) -> None:
    """Send an error as a whole response."""
    body = json.dumps(error.body()).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what is left of the body is not read
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
