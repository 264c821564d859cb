"""The artifact store: immutable directories at any place, visible by manifest only.

Layout below the root: `artifacts/<stage>/<attempt>/files…`, `manifests/<stage>/<fingerprint>.json`
(the commit mark, written last), `attempts/<stage>/<attempt>.json` (which files an attempt will
have, written first), `damaged/<stage>/<attempt>.json` (marks left by `verify`), `used/`, `leases/`,
`runs/`, `refs/`, and the mark that identifies a store (`storage.store.mark`). Readers follow
manifests; an attempt without one is garbage. `storage.layout` has the exact form of every name.
"""

import json
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from storage.errors import StorageError, holds_credentials, redact
from storage.filesystem import LocalFiles, local_error
from storage.layout import is_ours
from storage.store.manifest import (
    DamagedManifestError,
    FileRecord,
    Manifest,
    UnknownManifestError,
    decode,
)
from storage.store.mark import claim
from storage.store.readcache import ReadCache
from storage.store.stamps import Stamps

if TYPE_CHECKING:
    from storage.store.objects import ObjectFiles

READERS = 32  # small objects read from a remote store at once
USE_INTERVAL = 12 * 3600.0  # seconds after which a use is recorded again


class Artifact:
    """A committed artifact; files are local paths, fetched on first use from a remote store."""

    def __init__(self, store: "ArtifactStore", manifest: Manifest) -> None:
        self.manifest = manifest
        self.packages = manifest.packages  # versions of the libraries that made it
        self._store = store
        self._records = {record.name: record for record in manifest.files}

    @property
    def names(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted(self._records)

    @property
    def address(self) -> str:
        """Where its files are: a folder of this machine, or a URL."""
        files, folder = self._store.files, self.manifest.folder
        return str(files.path(folder)) if isinstance(files, LocalFiles) else files.url(folder)

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
        """Return local paths of the files whose whole name matches a glob, sorted by name.

        `*` matches within one folder: `index-*.parquet` does not find `second/index-0.parquet`.
        """
        matching = (name for name in self.names if PurePosixPath("/", name).match(f"/{pattern}"))
        return [self.path(name) for name in matching]

    def directory(self, prefix: str) -> Path:
        """Return a local directory that holds all files below a prefix.

        Raises:
            StorageError: There is none, or one of them is damaged.
        """
        paths = {name: self.path(name) for name in self.names if name.startswith(f"{prefix}/")}
        if not paths:
            raise StorageError(f"artifact {self.manifest.stage} has no directory {prefix}")
        name, path = next(iter(paths.items()))
        return path.parents[len(PurePosixPath(name).relative_to(prefix).parts) - 1]


class ArtifactStore:
    """Finds and serves artifacts; `storage.store.commits` adds them.

    Args:
        uri: Local path or any fsspec URL; credentials come from the environment.
        cache: Local folder for files of a remote store and for stamps of local files.
        cache_bytes: Size above which the least recently used artifacts are dropped from it.

    Raises:
        StorageError: The URL cannot be opened, or holds a secret.
    """

    def __init__(self, uri: str, cache: Path, cache_bytes: int = 50 * 2**30) -> None:
        self.files = _open(uri)
        self.uri = self.files.uri
        self.local = isinstance(self.files, LocalFiles)
        self.stamps = Stamps(cache / "stamps")
        self._cache = ReadCache(cache / "files", cache_bytes, self.stamps)
        self._claimed = False

    # -- finding -------------------------------------------------------------------------

    def find(self, stage: str, fingerprint: str) -> Manifest | None:
        """Return the manifest of an artifact, or None where it was never committed.

        Raises:
            DamagedManifestError: There is one, but it was truncated or altered.
            UnknownManifestError: It has a schema of another version.
            StorageError: The store cannot be read.
        """
        name = f"manifests/{stage}/{fingerprint}.json"
        data = self.read(name)
        return None if data is None else decode(data, name)

    def entries(self, stage: str, newest: int | None = None) -> dict[str, Manifest | StorageError]:
        """Return every manifest of a stage by fingerprint, or why it cannot be read.

        Args:
            stage: The stage.
            newest: Read only as many, those that were written last.
        """
        folder = f"manifests/{stage}"
        names = [name for name in self.list(folder) if is_ours(name)]
        if newest is not None and len(names) > newest:
            states = self.files.states(folder)
            written = {n: s.modified for n in names if (s := states.get(n[len(folder) + 1 :]))}
            if all(written.values()):  # where a store does not say when, all are read
                names = sorted(written, key=lambda name: -written[name])[:newest]
        entries: dict[str, Manifest | StorageError] = {}
        for name, data in zip(names, self.read_all(names), strict=True):
            if data is None:  # removed meanwhile
                continue
            try:
                entries[PurePosixPath(name).stem] = decode(data, name)
            except (DamagedManifestError, UnknownManifestError) as error:
                entries[PurePosixPath(name).stem] = error
        return entries

    def manifests(self, stage: str, newest: int | None = None) -> list[Manifest]:
        """Return the readable manifests of a stage, newest first; arguments as for `entries`."""
        entries = self.entries(stage, newest).values()
        manifests = [entry for entry in entries if isinstance(entry, Manifest)]
        return sorted(manifests, key=lambda manifest: (-manifest.created, manifest.fingerprint))

    def damage(self, manifest: Manifest) -> str:
        """Return what a quick check finds wrong with an artifact, or an empty string.

        Checks marks left by `verify`, and presence and sizes of the files. On a local store a
        file that changed since it was verified is hashed; others are not.
        """
        mark = self.read(_mark(manifest))
        if mark is not None:
            return _names_in(mark)
        states = self.files.states(manifest.folder)
        for record in manifest.files:
            state = states.get(record.name)
            if state is None:
                return f"{record.name} is missing"
            if state.bytes != record.bytes:
                return f"{record.name} has {state.bytes} bytes instead of {record.bytes}"
            if isinstance(self.files, LocalFiles) and self.stamps.altered(
                manifest.attempt, record, state
            ):
                fault = self._fault(self.files.path(manifest.folder), manifest, record)
                if fault:
                    return fault
        return ""

    # -- reading -------------------------------------------------------------------------

    def artifact(self, manifest: Manifest) -> Artifact:
        """Return a committed artifact for reading."""
        return Artifact(self, manifest)

    def local_path(self, manifest: Manifest, record: FileRecord) -> Path:
        """Return a local path of one file: the file itself on a local store, else a copy.

        The file was hashed on this machine once and has not changed since.

        Raises:
            StorageError: The file is not what was committed (it is marked, so that the next run
                makes it again), or it cannot be read.
        """
        if isinstance(self.files, LocalFiles):
            folder = self.files.path(manifest.folder)
            path, fault = folder / record.name, self._fault(folder, manifest, record)
        else:
            path, fault = self._fetch(self.files, manifest, record)
        if not fault:
            return path
        with suppress(StorageError):  # the store may be read-only
            self.mark_damaged(manifest, [record.name])
        raise StorageError(
            f"artifact {manifest.stage} in {self.uri} is damaged: {fault}",
            "`phivision run` makes it again",
        )

    def _fault(self, folder: Path, manifest: Manifest, record: FileRecord) -> str:
        try:
            return self.stamps.fault(manifest.attempt, folder / record.name, record)
        except OSError as error:
            raise local_error("read", folder / record.name, error) from error

    def _fetch(
        self, files: "ObjectFiles", manifest: Manifest, record: FileRecord
    ) -> tuple[Path, str]:
        url = files.url(f"{manifest.folder}/{record.name}")
        try:
            return self._cache.fetch(manifest, record, url)
        except StorageError:
            damage = self.damage(manifest)
            if not damage:
                raise
            return Path(), damage

    # -- marks ---------------------------------------------------------------------------

    def mark_damaged(self, manifest: Manifest, names: Sequence[str]) -> None:
        """Leave a mark that makes the next run make an artifact again."""
        for name in names:
            self.stamps.drop(manifest.attempt, name)
        self.write(_mark(manifest), json.dumps({"files": list(names)}).encode())

    def clear_mark(self, manifest: Manifest) -> None:
        """Remove the mark, because the artifact was found intact."""
        self.files.remove(_mark(manifest))

    def note_use(self, manifest: Manifest) -> None:
        """Record that a run uses an artifact, so that `gc` keeps it."""
        with suppress(StorageError):  # a read-only store has no gc either
            if time.time() - self.last_use(manifest) > USE_INTERVAL:
                self.write(use_name(manifest), json.dumps({"used": time.time()}).encode())

    def last_use(self, manifest: Manifest) -> float:
        """Return when a run last made or used an artifact, in seconds since 1970."""
        return used_at(manifest, self.read(use_name(manifest)))

    # -- small objects -------------------------------------------------------------------

    def read(self, name: str) -> bytes | None:
        """Return a small object, or None where it does not exist."""
        return self.files.read(name)

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Return several small objects in their order, None for each that does not exist.

        Those of a remote store are read beside each other, because each takes a round trip.
        """
        if self.local or len(names) < 2:
            return [self.read(name) for name in names]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self.read, names))

    def claim(self) -> None:
        """Mark the place as a store, unless it is marked already.

        Raises:
            StorageError: Other files are where a store has its own, or it cannot be written.
        """
        if not self._claimed:
            claim(self.files)
            self._claimed = True

    def write(self, name: str, data: bytes) -> None:
        """Write a small object whole, or not at all."""
        self.claim()
        self.files.write(name, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a new small object; return False and leave it unchanged if it exists."""
        self.claim()
        return self.files.create(name, data)

    def put(self, source: Path, name: str) -> None:
        """Bring in a finished local file under a new name."""
        self.claim()
        self.files.put(source, name)

    def is_writable(self) -> bool:
        """Return whether something can be written, by writing it."""
        probe = f".probe.{uuid.uuid4().hex[:8]}.tmp"  # a name that `gc` removes
        try:
            self.files.write(probe, b"")
            self.files.remove(probe)
        except StorageError:
            return False
        return True

    def list(self, folder: str) -> list[str]:
        """Return names of the objects directly in a folder, sorted; empty if there is none."""
        if isinstance(self.files, LocalFiles) and self.files.path(folder).is_file():
            return []  # a foreign file in the place of our folder
        return self.files.list(folder)


def _open(uri: str) -> "LocalFiles | ObjectFiles":
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme in ("file", "local"):
        place = rest if separator else uri
        if not place.strip():  # it would be the current folder
            raise StorageError(f"'{uri}' is not the address of a store", "give a path or a URL")
        return LocalFiles(Path(place).expanduser().absolute())
    if holds_credentials(uri):
        raise StorageError(
            f"the store {redact(uri)} has a secret in its address, which logs would show",
            "give credentials in the environment, e.g. AWS_ACCESS_KEY_ID",
        )
    from storage.store.objects import ObjectFiles  # fsspec takes long to import

    return ObjectFiles(uri)


def _mark(manifest: Manifest) -> str:
    return f"damaged/{manifest.stage}/{manifest.attempt}.json"


def use_name(manifest: Manifest) -> str:
    """Return the name of the record of an artifact's last use."""
    return f"used/{manifest.stage}/{manifest.fingerprint}.json"


def used_at(manifest: Manifest, record: bytes | None) -> float:
    """Return when an artifact was last made or used, by the content of `use_name`."""
    with suppress(ValueError, TypeError, KeyError):
        return max(manifest.created, float(json.loads(record or b"")["used"]))
    return manifest.created


def _names_in(mark: bytes) -> str:
    try:
        return ", ".join(json.loads(mark)["files"])
    except (ValueError, TypeError, KeyError):
        return "it was marked as damaged"
