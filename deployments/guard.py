"""Who may use a server without a password: programs on this machine and the server's own page.

A browser sends requests for every page that it shows, so any website could reach a server on
loopback. CORS does not prevent it: a POST without a content type needs no preflight, and Prefect
parses its body as JSON; websockets are not covered by CORS at all. But the browser always names
the page in `Origin`, and `Host` reveals a foreign domain that resolves to this machine (DNS
rebinding).
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from flows.surroundings import LOOPBACK

REFUSED = (
    "this server has no password, so it answers only this machine and its own page; "
    "set PREFECT_SERVER_API_AUTH_STRING=user:password to allow others\n"
)


class Guard:
    """Refuse requests that another site's page makes in a browser of this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or open one websocket."""
        if scope["type"] == "lifespan" or is_own(Headers(scope=scope)):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(reason=REFUSED[:100])(scope, receive, send)
        else:
            await PlainTextResponse(REFUSED, 403)(scope, receive, send)


def is_own(headers: Headers) -> bool:
    """Return whether a request is for loopback, and from a program or the server's own page."""
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        name = urlsplit(f"//{host}").hostname
        page = None if origin is None else urlsplit(origin).netloc
    except ValueError:  # a malformed address
        return False
    return name in LOOPBACK and page in (None, host)
