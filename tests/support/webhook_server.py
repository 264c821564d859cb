"""A real HTTP server on loopback that receives notifications, and fails as it is told to."""

import json
from typing import Any

from tests.support.loopback import LoopbackServer, QuietHandler

PATH = "/services/T0PLANTED/hook-s3cret-Zq81"  # as Slack's addresses, of which the path is secret
TOKEN = "hook-s3cret-Zq81"


class WebhookServer(LoopbackServer):
    """Answer POST requests until the `with` block ends.

    Args:
        *statuses: Of the first answers; later ones are 200.
        hang: Seconds before each answer.

    Attributes:
        received: The JSON of each request, in order of arrival.
        paths: The path of each.
        types: The content type of each.
    """

    def __init__(self, *statuses: int, hang: float = 0.0) -> None:
        self.statuses, self.hang = list(statuses), hang
        self.received: list[Any] = []
        self.paths: list[str] = []
        self.types: list[str] = []
        super().__init__(_Handler)

    @property
    def address(self) -> str:
        """The address of the webhook."""
        return f"{self.url}{PATH}"

    @property
    def texts(self) -> list[str]:
        """What was received, as text."""
        return [each["text"] for each in self.received]


class _Handler(QuietHandler):
    server: WebhookServer

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        self.server.types.append(self.headers.get("Content-Type", ""))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(json.loads(body))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        self.server.stopping.wait(self.server.hang)
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", f"{self.server.url}/elsewhere")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
