"""The artifact store: immutable directories on any fsspec filesystem, visible by manifest only.

Layout below the root: `artifacts/<stage>/<attempt>/files…`, `manifests/<stage>/<fingerprint>.json`
(the commit mark, written last), `damaged/…` (marks left by `verify`), `runs/`, `refs/`.
Readers follow manifests; an attempt without one is garbage.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from pydantic import ValidationError

from storage.errors import StorageError
from storage.filesystem import (
    hash_file,
    is_local,
    link_or_copy,
    read_bytes,
    redacted,
    write_bytes,
)
from storage.manifest import SCHEMA, FileRecord, Manifest, digest_of
from storage.readcache import ReadCache


class Artifact:
    """A committed artifact; files are local paths, fetched on first use from a remote store."""

    def __init__(self, store: "ArtifactStore", manifest: Manifest) -> None:
        self.manifest = manifest
        self._store = store
        self._records = {record.name: record for record in manifest.files}

    @property
    def names(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted(self._records)

    def path(self, name: str) -> Path:
        """Return a local path of one file.

        Raises:
            StorageError: The artifact has no such file, or the file is damaged.
        """
        if name not in self._records:
            raise StorageError(
                f"artifact {self.manifest.stage} has no file {name}",
                f"it holds: {', '.join(self.names[:8])}",
            )
        return self._store.local_path(self.manifest, self._records[name])

    def paths(self, pattern: str) -> list[Path]:
        """Return local paths of the files whose name matches a glob pattern, sorted by name."""
        return [self.path(name) for name in self.names if PurePosixPath(name).match(pattern)]

    def directory(self, prefix: str) -> Path:
        """Return a local directory that holds all files below a prefix."""
        names = [name for name in self.names if name.startswith(prefix + "/")]
        if not names:
            raise StorageError(f"artifact {self.manifest.stage} has no directory {prefix}")
        for name in names:
            local = self.path(name)
        depth = len(PurePosixPath(name).relative_to(prefix).parts)
        return local.parents[depth - 1]


class ArtifactStore:
    """Commits, finds and serves artifacts.

    Args:
        uri: Local path or any fsspec URL; credentials come from the environment.
        cache: Local folder for files of a remote store.
        cache_bytes: Size above which the oldest files of that cache are dropped.
    """

    def __init__(self, uri: str, cache: Path, cache_bytes: int = 50 * 2**30) -> None:
        self.uri = redacted(uri)
        try:
            self.fs, self.root = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise StorageError(f"cannot open the store {self.uri}: {error}") from None
        self.local = is_local(self.fs)
        self._cache = ReadCache(cache, cache_bytes)

    def full(self, name: str) -> str:
        """Return the path of a name on the store's filesystem."""
        return f"{self.root.rstrip('/')}/{name}"

    # -- finding -------------------------------------------------------------------------

    def find(self, stage: str, fingerprint: str) -> Manifest | None:
        """Return the manifest of an artifact, or None where it was never committed.

        Raises:
            StorageError: The manifest cannot be read or has an unknown schema.
        """
        return self._load(f"manifests/{stage}/{fingerprint}.json")

    def manifests(self, stage: str) -> list[Manifest]:
        """Return all committed manifests of a stage, newest first."""
        names = self.list(f"manifests/{stage}")
        found = [self._load(name) for name in names if name.endswith(".json")]
        return sorted((m for m in found if m), key=lambda m: -m.created)

    def damage(self, manifest: Manifest) -> str:
        """Return what is wrong with an artifact at a glance, or an empty string.

        Looks at marks left by `verify` and at the presence and sizes of the files; it does not
        hash them.
        """
        mark = self.read(f"damaged/{manifest.stage}/{manifest.fingerprint}.json")
        if mark is not None:
            return ", ".join(json.loads(mark)["files"])
        sizes = self._sizes(manifest.folder)
        for record in manifest.files:
            size = sizes.get(record.name)
            if size is None:
                return f"{record.name} is missing"
            if size != record.bytes:
                return f"{record.name} has {size} bytes instead of {record.bytes}"
        return ""

    def artifact(self, manifest: Manifest) -> Artifact:
        """Return a committed artifact for reading."""
        return Artifact(self, manifest)

    def local_path(self, manifest: Manifest, record: FileRecord) -> Path:
        """Return a local, whole copy of one file (the file itself on a local store)."""
        name = f"{manifest.folder}/{record.name}"
        if self.local:
            path = Path(self.full(name))
            if not path.is_file() or path.stat().st_size != record.bytes:
                raise StorageError(f"{path} is missing or damaged", "run `phivision run` again")
            return path
        return self._cache.fetch(self.fs, self.full(name), record, manifest.digest)

    # -- committing ----------------------------------------------------------------------

    def commit(
        self,
        *,
        stage: str,
        fingerprint: str,
        payload: Mapping[str, Any],
        folder: Path,
        summary: Mapping[str, Any],
        packages: Mapping[str, str],
        commit: str,
        seconds: float,
    ) -> Manifest:
        """Upload a folder's files, then write the manifest that makes them visible.

        The folder stays as it is, so that a kill in the middle loses nothing.

        Raises:
            StorageError: The folder is empty or the store cannot be written.
        """
        records = scan(folder)
        if not records:
            raise StorageError(f"stage {stage} wrote no file", "this is a defect of the stage")
        manifest = Manifest(
            stage=stage,
            fingerprint=fingerprint,
            payload=dict(payload),
            digest=digest_of(records),
            attempt=f"{fingerprint[:16]}-{uuid.uuid4().hex[:8]}",
            files=records,
            summary=dict(summary),
            packages=dict(packages),
            commit=commit,
            created=time.time(),
            seconds=round(seconds, 3),
        )
        for record in records:
            self._upload(folder / record.name, f"{manifest.folder}/{record.name}")
        self.publish(manifest)
        return manifest

    def publish(self, manifest: Manifest) -> None:
        """Write a manifest, replacing an older one of the same fingerprint."""
        text = manifest.model_dump_json(indent=1)
        key = f"{manifest.stage}/{manifest.fingerprint}.json"
        self.write(f"manifests/{key}", text.encode())
        if self.read(f"damaged/{key}") is not None:
            self.fs.rm(self.full(f"damaged/{key}"))

    def mark_damaged(self, manifest: Manifest, files: list[str]) -> None:
        """Leave a mark that makes the next run re-make an artifact."""
        name = f"damaged/{manifest.stage}/{manifest.fingerprint}.json"
        self.write(name, json.dumps({"files": files}).encode())

    # -- small objects -------------------------------------------------------------------

    def read(self, name: str) -> bytes | None:
        """Return a small object, or None where it does not exist."""
        return read_bytes(self.fs, self.full(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a small object whole, or not at all."""
        write_bytes(self.fs, self.full(name), data)

    def list(self, folder: str) -> list[str]:
        """Return names of the objects directly in a folder, sorted; empty if there is none."""
        path = self.full(folder)
        try:
            self.fs.invalidate_cache()
            found = self.fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(f"{folder}/{str(item).rstrip('/').rsplit('/', 1)[-1]}" for item in found)

    def _load(self, name: str) -> Manifest | None:
        data = self.read(name)
        if data is None:
            return None
        try:
            values = json.loads(data)
            version = values.get("manifest")
            if version != SCHEMA:
                raise StorageError(
                    f"{name} has manifest schema {version}, this phivision reads {SCHEMA}",
                    "use the phivision that wrote this store, or a new store",
                )
            return Manifest.model_validate(values)
        except (ValueError, ValidationError, AttributeError) as error:
            raise StorageError(
                f"{self.uri}/{name} is not a manifest: {str(error).splitlines()[0]}",
                "delete that one file; the stage will run again",
            ) from None

    def _sizes(self, folder: str) -> dict[str, int]:
        base = self.full(folder)
        if self.local:
            root = Path(base)
            return {
                path.relative_to(root).as_posix(): path.stat().st_size
                for path in root.rglob("*")
                if path.is_file()
            }
        try:
            self.fs.invalidate_cache()
            found = self.fs.find(base, detail=True)
        except FileNotFoundError:
            return {}
        start = len(base.lstrip("/")) + 1
        return {str(path).lstrip("/")[start:]: info["size"] for path, info in found.items()}

    def _upload(self, source: Path, name: str) -> None:
        try:
            if self.local:
                link_or_copy(source, Path(self.full(name)))
            else:
                self.fs.put_file(str(source), self.full(name))
        except OSError as error:
            raise StorageError(
                f"cannot write {name} to {self.uri}: {error.strerror or error}",
                "check space and permissions, then run again: finished work is kept",
            ) from error


def scan(folder: Path) -> tuple[FileRecord, ...]:
    """Return a record of every file below a folder, sorted by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        FileRecord(
            name=path.relative_to(folder).as_posix(),
            bytes=path.stat().st_size,
            sha256=hash_file(path, hashlib.sha256()),
        )
        for path in files
    )
