"""Images of requests: data, or hosts that were named, and nothing else."""

import base64
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from flows.serve.errors import RequestError
from flows.serve.images import read_image
from flows.serve.limits import ServeLimits

LIMITS = ServeLimits(image_bytes=1000, fetch_seconds=1)


class Handler(BaseHTTPRequestHandler):
    """Answers by the path."""

    def do_GET(self) -> None:
        """Send what the path asks for."""
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/image")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/lost" else 200)
        self.end_headers()
        self.wfile.write(b"x" * (2000 if self.path == "/large" else 10))

    def log_message(self, *_: object) -> None:
        """Be silent."""


@pytest.fixture(scope="module")
def place() -> Generator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def data(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def test_an_image_may_be_inside_the_request() -> None:
    assert read_image(data(b"image"), (), LIMITS) == b"image"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (data(b"x" * 1001), "0 MB at most"),
        ("data:image/png;base64,!!", "not valid base64"),
        ("data:image/png,abc", "must be data:"),
        ("data:image/png;base64", "must be data:"),
        ("http://169.254.169.254/latest/meta-data", "data: URIs only"),
        ("file:///etc/passwd", "data: URIs only"),
        ("ftp://host/a.png", "data: URIs only"),
        ("", "data: URIs only"),
    ],
)
def test_other_images_are_refused(url: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read_image(url, (), LIMITS)


def test_a_named_host_is_asked(place: str) -> None:
    assert read_image(f"http://{place}/image", {place}, LIMITS) == b"x" * 10


@pytest.mark.parametrize(
    ("path", "words"), [("lost", "status 404"), ("large", "at most"), ("moved", "status 302")]
)
def test_what_a_host_sends_is_checked(place: str, path: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read_image(f"http://{place}/{path}", {place}, LIMITS)


def test_another_host_or_port_is_not_asked(place: str) -> None:
    for url in (f"http://{place}.evil/image", f"http://user@{place}/image", "http://127.0.0.1/a"):
        with pytest.raises(RequestError, match=f"from {place} only"):
            read_image(url, {place}, LIMITS)


def test_a_host_that_is_away_is_told() -> None:
    with pytest.raises(RequestError, match="cannot be fetched: ConnectError"):
        read_image("http://127.0.0.1:9/a.png", {"127.0.0.1:9"}, LIMITS)
