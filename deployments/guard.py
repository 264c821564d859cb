"""Who may speak to a server without a password: programs of this machine and its own page.

A browser fetches for every page that it shows, so a page from anywhere could speak to a server on
loopback. CORS rules do not keep it from that: a POST without a content type is sent unasked, and
Prefect reads its body as JSON; websockets have no such rules at all. But the browser always names
the page in `Origin`, and `Host` tells where a stranger's name was pointed at this machine.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from flows.surroundings import LOOPBACK

REFUSED = (
    "this server has no password, so it answers this machine and its own page only; "
    "set PREFECT_SERVER_API_AUTH_STRING=user:password for others\n"
)


class Guard:
    """Refuse requests that another site's page makes in a browser of this machine.

    Args:
        app: The server.
    """

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
    """Return whether a request is for loopback, and from no page or from the server's own."""
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        name = urlsplit(f"//{host}").hostname
        page = None if origin is None else urlsplit(origin).netloc
    except ValueError:  # no address at all
        return False
    return name in LOOPBACK and page in (None, host)
