"""A hub on loopback: it makes repositories, takes commits and gives the files back.

It answers what huggingface_hub asks for, and remembers every request with its token. What a test
publishes on it has commits of its own, and may be public, private or gated.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from tests.support.loopback import LoopbackServer, QuietHandler

COMMIT = "c0ffee" * 6 + "c0ff"

Access = Literal["public", "private", "gated"]


class Repository:
    """What was made and uploaded, or published by a test."""

    def __init__(self, name: str, made: dict[str, Any], access: Access = "private") -> None:
        self.name, self.made, self.access = name, made, access
        self.messages: list[str] = []
        self.head, self.commits = COMMIT, dict[str, dict[str, bytes]]({COMMIT: {}})
        self.tags: dict[str, str] = {}

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.commits[self.head]

    def commit(self, revision: str) -> str | None:
        """Return the commit of a revision, None where there is none."""
        commit = self.head if revision == "main" else self.tags.get(revision, revision)
        return commit if commit in self.commits else None

    def add(self, files: Mapping[str, bytes]) -> str:
        """Make `files` the newest commit and return it."""
        known = json.dumps({file: hashlib.sha1(data).hexdigest() for file, data in files.items()})
        self.head = hashlib.sha1(known.encode()).hexdigest()
        self.commits[self.head] = dict(files)
        return self.head


class FakeHub(LoopbackServer):
    """The hub.

    Attributes:
        hold: Name of a file of which half is sent and no more, until the hub ends.
        halfway: Set once that half was sent.
        lfs: Whether large files are taken by git's LFS protocol, one request each.
        blobs: Large files that were taken, by SHA-256.
        ranges: The `Range` of each request for a file's content, "" for all of it.
        hold_after: Number of large files after which one is taken half and no more.

    Args:
        token: The only token that may write, or read what is private.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.hold, self.halfway = "", threading.Event()
        self.lfs, self.hold_after, self.puts = False, -1, 0
        self.counting = threading.Lock()
        self.blobs: dict[str, bytes] = {}
        self.ranges: list[tuple[str, str]] = []
        super().__init__(_Handler)

    def publish(self, name: str, files: Mapping[str, bytes], access: Access = "public") -> str:
        """Make `files` the newest commit of a repository's branch `main` and return the commit."""
        repository = self.repositories.setdefault(name, Repository(name, {}))
        repository.access = access
        return repository.add(files)

    def fetched(self) -> list[str]:
        """Return the names of the files whose content was asked for, in order."""
        asked = [path for path, _ in self.asked if path.startswith("GET ") and "/resolve/" in path]
        return [path.split("/resolve/")[1].partition("/")[2] for path in asked]


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
            return self._answer(200, {"files": self._modes(repository, json.loads(body)["files"])})
        if path.endswith("/info/lfs/objects/batch"):
            return self._answer(200, {"objects": self._wanted(json.loads(body)["objects"])})
        if tag := re.search(r"/tag/([^/]+)$", path):
            repository.tags[json.loads(body)["tag"]] = repository.commit(tag[1]) or ""
            return self._answer(200, {})
        commit = repository.add(self._changed(repository, body))
        address = f"{self.server.url}/{repository.name}/commit/{commit}"
        return self._answer(200, {"commitUrl": address, "commitOid": commit})

    def do_DELETE(self) -> None:
        path = self._path()
        repository = self._repository(path)
        assert repository is not None
        assert self._is_known()
        del repository.tags[path.rpartition("/tag/")[2]]
        self._answer(200, {})

    def do_PUT(self) -> None:
        """Take a large file; the address names its digest, as the batch answer gave it."""
        oid, length = self._path().rpartition("/")[2], int(self.headers["Content-Length"])
        with self.server.counting:
            self.server.puts += 1
            is_held = 0 <= self.server.hold_after < self.server.puts
        if is_held:
            self.rfile.read(length // 2)
            while len(self.server.blobs) < self.server.hold_after:
                time.sleep(0.01)  # the ones before it
            self.server.halfway.set()
            self.server.stopping.wait()
            self.close_connection = True
            return
        data = self.rfile.read(length)
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.blobs[oid] = data
        self._answer(200, {})

    def _modes(self, repository: Repository, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return how each file is to be sent, and its digest if it is there already."""
        answers = []
        for file in asked:
            name = file["path"]
            is_large = self.server.lfs and name.endswith(".safetensors")
            answer = {"path": name, "uploadMode": "lfs" if is_large else "regular"}
            if name in repository.files:
                answer["oid"] = _blob(name if is_large else "", repository.files[name])
            answers.append(answer | {"shouldIgnore": False})
        return answers

    def _wanted(self, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return where to send each large file that is not here yet."""
        return [
            {"oid": each["oid"], "size": each["size"]}
            | (
                {}
                if each["oid"] in self.server.blobs
                else {"actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
            )
            for each in objects
        ]

    def _changed(self, repository: Repository, body: bytes) -> dict[str, bytes]:
        """Return the files after a commit, which is one JSON object a line."""
        files = dict(repository.files)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    repository.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        return files

    def do_GET(self) -> None:
        path = self._path()
        repository = self._repository(path)
        hidden = repository is not None and repository.access == "private" and not self._is_known()
        if repository is None or hidden:
            status = 404 if self._is_known() else 401  # as the Hub, which does not tell which
            return self._answer(status, {"error": "Repository not found"}, "RepoNotFound")
        asked = re.search(r"/(?:resolve|revision|tree)/([^/?]+)", path)
        commit = repository.commit(asked[1] if asked else "main")
        if commit is None:
            return self._answer(404, {"error": "Invalid rev id"}, "RevisionNotFound")
        files = repository.commits[commit]
        if "/resolve/" in path:
            if repository.access == "gated" and not self._is_known():
                status = 403 if self.headers.get("Authorization") else 401
                return self._answer(status, {"error": "Access is restricted"}, "GatedRepo")
            name = path.split("/resolve/")[1].partition("/")[2]
            if name not in files:
                return self._answer(404, {"error": "Entry not found"}, "EntryNotFound")
            return self._give(name, files[name], commit)
        if "/tree/" in path:
            return self._answer(200, [_described(name, data) for name, data in files.items()])
        siblings = [{"rfilename": name} for name in files]
        return self._answer(200, {"id": repository.name, "sha": commit, "siblings": siblings})

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
        found = (
            each for each in self.server.repositories if re.search(rf"/{each}(\.git)?/", f"{path}/")
        )
        return self.server.repositories.get(next(found, ""))

    def _answer(self, status: int, value: Any, code: str = "") -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _give(self, name: str, data: bytes, commit: str) -> None:
        etag = _blob(name, data)
        asked = self.headers.get("Range", "")
        if self.command == "GET":
            self.server.ranges.append((name, asked))
        if asked:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            data = data[start:]
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name == self.server.hold:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.server.halfway.set()
            self.server.stopping.wait()
            self.close_connection = True
            return
        self.wfile.write(data)


def _blob(name: str, data: bytes) -> str:
    """Return the hash by which the Hub's cache names a file: SHA-256 of large files, else git's."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _described(name: str, data: bytes) -> dict[str, Any]:
    found = {"type": "file", "path": name, "size": len(data), "oid": _blob(name, data)}
    if name.endswith(".safetensors"):
        found["lfs"] = {"oid": _blob(name, data), "size": len(data), "pointerSize": 134}
    return found
