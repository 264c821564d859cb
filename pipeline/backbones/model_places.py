"""Where a published model may be, and how chosen files of it get into a local folder.

The Hub (through its cache), a local folder, or any fsspec URL: each can check for a file and fetch
files. Which files are chosen does not depend on the place, so that the same model gives the same
artifact from anywhere.
"""

import hashlib
import re
from collections.abc import Collection
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Protocol

from pipeline.backbones.model_sources import Source, probe_if_there
from pipeline.errors import PipelineError
from pipeline.hub.failures import fetching
from pipeline.hub.snapshots import PATIENCE, Repository, cached_snapshot, note_commit
from pipeline.progress import Reporter
from storage.clones import clone_file
from storage.errors import redact
from storage.fetch.transfer import download
from storage.filesystem import hash_file

_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's own hash, or SHA-256 of a large file


class Place(Protocol):
    """Where a model's files are.

    Attributes:
        title: The place as shown to users, without secrets.
        commit: Commit of the Hub that was fetched, "" elsewhere.
    """

    title: str
    commit: str

    def has(self, name: str) -> bool:
        """Return whether the place has a file."""

    def bring(self, names: Collection[str], folder: Path) -> None:
        """Put complete files into a local folder."""


def place_of(source: Source, scratch: Path, report: Reporter) -> Place:
    """Return the place that a source names.

    Raises:
        PipelineError: It is a local folder that does not exist.
    """
    match source:
        case Repository():
            return HubPlace(source)
        case Path():
            return FolderPlace(source)
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    return UrlPlace(source, scratch / key, report)


class FolderPlace:
    """A folder on this machine, which its owner may edit later: nothing is linked to it."""

    commit = ""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise PipelineError(f"No such folder: {folder}", "check the path")
        self.title, self._folder = str(folder), folder

    def has(self, name: str) -> bool:
        """Return whether the place has a file."""
        return (self._folder / name).is_file()

    def bring(self, names: Collection[str], folder: Path) -> None:
        """Copy files, as clones where the file system supports that."""
        for name in names:
            clone_file(self._folder / name, folder / name, may_link=False)


class UrlPlace:
    """A folder behind any fsspec URL; fetched files stay in `scratch` if the stage is killed."""

    commit = ""

    def __init__(self, url: str, scratch: Path, report: Reporter) -> None:
        self._url, self._scratch, self._report = url.rstrip("/"), scratch, report
        self.title = redact(self._url)

    def has(self, name: str) -> bool:
        """Return whether the place has a file."""
        return bool(probe_if_there(f"{self._url}/{name}"))

    def bring(self, names: Collection[str], folder: Path) -> None:
        """Fetch files; an interrupted download is resumed."""
        for name in names:
            url, target = f"{self._url}/{name}", self._scratch / name
            with self._report.track(f"fetch {name}", None) as tick:
                download(url, target, checksum=None, size=None, advance=tick)
            clone_file(target, folder / name, may_link=True)


class HubPlace:
    """A repository of the Hub, or its cached files if the Hub cannot be reached."""

    def __init__(self, repository: Repository) -> None:
        self.title, self.commit, self._repository = repository.title, "", repository
        self._remedy = "check the network, or give a local folder or another place in backbones.*"

    def has(self, name: str) -> bool:
        """Return whether the place has a file."""
        return self._inside(name) in self._names

    def bring(self, names: Collection[str], folder: Path) -> None:
        """Fetch missing files into the Hub's cache, and link or copy all of them."""
        snapshot = cached_snapshot(self._repository)
        files = {name: self._inside(name) for name in names}
        if snapshot is None or not all((snapshot / file).is_file() for file in files.values()):
            snapshot = self._download(files.values())
        self.commit = snapshot.name
        note_commit(self._repository, self.commit)
        for name, file in files.items():
            if not (snapshot / file).is_file():
                raise PipelineError(
                    f"the cache {snapshot} lacks {file}",
                    f"fill it on a machine with a network: hf download {self._repository.name}",
                )
            _check_blob(snapshot / file)
            clone_file(snapshot / file, folder / name, may_link=name.endswith(".safetensors"))

    def _inside(self, name: str) -> str:
        """Return the name in the repository of a file of the folder that is meant."""
        return f"{self._repository.folder}/{name}" if self._repository.folder else name

    def _download(self, files: Collection[str]) -> Path:
        from huggingface_hub import snapshot_download

        name, revision, kind, commit = self._repository[:4]
        with fetching(self.title, self._remedy, name):
            snapshot = snapshot_download(
                name,
                repo_type=kind,
                revision=commit or revision,
                allow_patterns=[escape(file) for file in files],
            )
        return Path(snapshot)

    @cached_property
    def _names(self) -> frozenset[str]:
        """Names of the files, from the Hub, else from its cache."""
        from huggingface_hub import HfApi

        name, revision, _, commit = self._repository[:4]
        try:
            with fetching(self.title, self._remedy, name):
                info = HfApi().model_info(name, revision=commit or revision, timeout=PATIENCE)
                return frozenset(file.rfilename for file in info.siblings or ())
        except PipelineError:
            cached = cached_snapshot(self._repository)
            if cached is None:
                raise
            return frozenset(str(path.relative_to(cached)) for path in cached.rglob("*"))


def _check_blob(path: Path) -> None:
    """Refuse a file of the cache whose content does not match its name.

    The cache names a file by its hash, and a file that shares its bytes with an artifact could have
    been altered; without this check the artifact would be made again from the altered file.
    """
    blob = path.resolve()
    if not path.is_symlink() or not _BLOB.fullmatch(blob.name):
        return
    if len(blob.name) == 64:
        digest = hash_file(blob, hashlib.sha256())
    else:
        size = blob.stat().st_size
        digest = hash_file(blob, hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False))
    if digest != blob.name:
        raise PipelineError(
            f"{blob} in the Hub's cache was altered: its content does not match its name's hash",
            "remove that file and run again with a network, or copy the cache again",
        )
