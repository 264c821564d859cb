"""A hub on loopback: it makes repositories, takes commits and gives the files back.

It answers what huggingface_hub asks for, and remembers every request with its token.
"""

import base64
import hashlib
import json
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.loopback import LoopbackServer, QuietHandler

COMMIT = "c0ffee" * 6 + "c0ff"


class Repository:
    """What was made and uploaded."""

    def __init__(self, name: str, made: dict[str, Any]) -> None:
        self.name, self.made = name, made
        self.files: dict[str, bytes] = {}
        self.messages: list[str] = []


class FakeHub(LoopbackServer):
    """The hub.

    Args:
        token: The only token that may write or read.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        super().__init__(_Handler)


class _Handler(QuietHandler):
    server: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._path()
        if not self._is_known():
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            made = json.loads(body)
            name = f"{made['organization']}/{made['name']}"
            if name in self.server.repositories:
                return self._answer(409, {"error": "You already created this repo", "url": name})
            self.server.repositories[name] = Repository(name, made)
            return self._answer(200, {"url": f"{self.server.url}/{name}"})
        repository = self._repository(path)
        if repository is None:
            return self._answer(404, {"error": "Repository not found"})
        if "/preupload/" in path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return self._answer(200, {"files": [{"path": each} | regular for each in paths]})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                repository.messages.append(entry["value"]["summary"])
            elif entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                repository.files[entry["value"]["path"]] = content
        address = f"{self.server.url}/{repository.name}/commit/{COMMIT}"
        return self._answer(200, {"commitUrl": address, "commitOid": COMMIT})

    def do_GET(self) -> None:
        path = self._path()
        repository = self._repository(path)
        if repository is None or not self._is_known():
            return self._answer(404, {"error": "Repository not found"})
        if "/resolve/" in path:
            data = repository.files.get(path.split("/resolve/")[1].partition("/")[2])
            return self._answer(404, {}) if data is None else self._give(data)
        listed = [_described(name, data) for name, data in repository.files.items()]
        if "/tree/" in path:
            return self._answer(200, listed)
        siblings = [{"rfilename": name} for name in repository.files]
        return self._answer(200, {"id": "owner/name", "sha": COMMIT, "siblings": siblings})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server.asked.append((f"{self.command} {path}", token))
        return path

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def _repository(self, path: str) -> Repository | None:
        found = (each for each in self.server.repositories if f"/{each}/" in f"{path}/")
        return self.server.repositories.get(next(found, ""))

    def _answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _give(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _described(name: str, data: bytes) -> dict[str, Any]:
    return {
        "type": "file",
        "path": name,
        "size": len(data),
        "oid": hashlib.sha256(data).hexdigest(),
    }
