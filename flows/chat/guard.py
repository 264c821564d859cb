"""Middleware in front of Gradio: it checks requests before their body is read, and sets headers."""

import asyncio
from typing import Any

from flows.chat.uploads import Uploads
from flows.surroundings import LOOPBACK

# The browser loads from this server only; images may also be pasted (data:, blob:).
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_FULL = "The server holds too many images now. Please try again later."


def guards(uploads: Uploads, *, local: bool) -> list[Any]:
    """Return the middleware in the form that Gradio's server takes.

    Args:
        uploads: The files of visitors.
        local: Whether the server is on loopback and has no password. It then answers only by a name
            of loopback, because a page of another site could be made to resolve to this machine
            (DNS rebinding) and would read everything.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    names = Middleware(
        TrustedHostMiddleware,
        allowed_hosts=[f"[{name}]" if ":" in name else name for name in LOOPBACK],
        www_redirect=False,
    )
    return [*([names] if local else []), Middleware(_Guard, uploads)]


class _Guard:
    """Serves this server's files only, limits requests and keeps browsers from other hosts."""

    def __init__(self, app: Any, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *_HEADERS]
                message = {**message, "headers": headers}
            await send(message)

        path = scope["path"]
        if "file=http" in path or "/proxy=" in path:  # Gradio would fetch another server's page
            scope = {**scope, "path": "/refused", "raw_path": b"/refused"}
        if scope["method"] in ("POST", "PUT", "PATCH"):
            await self._take(scope, receive, with_policy)
        else:
            await self.app(scope, receive, with_policy)

    async def _take(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on a request that has a body, or refuse it before the body is read."""
        length = _length(scope)
        if length is None:
            await _refuse(411, "The request has no Content-Length.", scope, receive, send)
        elif length > self.uploads.longest:
            await _refuse(413, "The request is too long.", scope, receive, send)
        elif "/upload" not in scope["path"]:
            await self.app(scope, receive, send)
        else:
            with self.uploads.arriving(length):
                if not await asyncio.to_thread(lambda: self.uploads.is_full):
                    await self.app(scope, receive, send)
                    return
            await _drain(receive)  # a browser that still sends would not see the answer
            await _refuse(507, _FULL, scope, receive, send)


def _length(scope: Any) -> int | None:
    """Return the length of a request's body in bytes, None where the request states none."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() and b"transfer-encoding" not in headers else None


async def _drain(receive: Any) -> None:
    while (await receive()).get("more_body", False):
        continue


async def _refuse(status: int, reason: str, scope: Any, receive: Any, send: Any) -> None:
    from starlette.responses import PlainTextResponse

    await PlainTextResponse(reason, status)(scope, receive, send)
