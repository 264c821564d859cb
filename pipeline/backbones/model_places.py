"""Where a published model may lie, and how chosen files of it come to a folder of ours.

The Hub (through its cache), a local folder, or any fsspec URL: each tells whether it has a file and
brings files. What is chosen is decided elsewhere, the same for all of them, so that the same model
gives the same artifact from wherever it comes.
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
    """Where a model's files lie.

    Attributes:
        title: The place for people, without secrets.
        commit: Commit of the Hub that was brought, "" elsewhere.
    """

    title: str
    commit: str

    def has(self, name: str) -> bool:
        """Return whether a file lies there."""

    def bring(self, names: Collection[str], folder: Path) -> None:
        """Put files into a local folder, whole."""


def place_of(source: Source, scratch: Path, report: Reporter) -> Place:
    """Return the place that a source names.

    Args:
        source: What `find_source` gave.
        scratch: Folder for what was fetched from a URL; it survives a kill.
        report: Progress.

    Raises:
        PipelineError: It is a local folder that is not there.
    """
    match source:
        case Repository():
            return HubPlace(source)
        case Path():
            return FolderPlace(source)
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    return UrlPlace(source, scratch / key, report)


class FolderPlace:
    """A folder on this machine that its owner may go on to edit: nothing is linked to it."""

    commit = ""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise PipelineError(f"No such folder: {folder}", "check the path")
        self.title, self._folder = str(folder), folder

    def has(self, name: str) -> bool:
        """Return whether a file lies there."""
        return (self._folder / name).is_file()

    def bring(self, names: Collection[str], folder: Path) -> None:
        """Copy files, without moving their bytes where the disk can."""
        for name in names:
            clone_file(self._folder / name, folder / name, may_link=False)


class UrlPlace:
    """A folder behind any fsspec URL; what is fetched waits in `scratch` for a killed stage."""

    commit = ""

    def __init__(self, url: str, scratch: Path, report: Reporter) -> None:
        self._url, self._scratch, self._report = url.rstrip("/"), scratch, report
        self.title = redact(self._url)

    def has(self, name: str) -> bool:
        """Return whether a file lies there."""
        return bool(probe_if_there(f"{self._url}/{name}"))

    def bring(self, names: Collection[str], folder: Path) -> None:
        """Fetch files; one that was stopped goes on where it stopped."""
        for name in names:
            url, target = f"{self._url}/{name}", self._scratch / name
            with self._report.track(f"fetch {name}", None) as tick:
                download(url, target, checksum=None, size=None, advance=tick)
            clone_file(target, folder / name, may_link=True)


class HubPlace:
    """A repository of the Hub, or what its cache holds of it where the Hub cannot be asked."""

    def __init__(self, repository: Repository) -> None:
        self.title, self.commit, self._repository = repository.title, "", repository
        self._remedy = "check the network, or give a local folder or another place in backbones.*"

    def has(self, name: str) -> bool:
        """Return whether a file lies there."""
        return name in self._names

    def bring(self, names: Collection[str], folder: Path) -> None:
        """Fetch files into the Hub's cache where they are missing, and link or copy them."""
        snapshot = cached_snapshot(self._repository)
        if snapshot is None or not all((snapshot / name).is_file() for name in names):
            snapshot = self._download(names)
        self.commit = snapshot.name
        note_commit(self._repository, self.commit)
        for name in names:
            if not (snapshot / name).is_file():
                raise PipelineError(
                    f"the cache {snapshot} lacks {name}",
                    f"fill it where there is a network: hf download {self._repository.name}",
                )
            _check_blob(snapshot / name)
            clone_file(snapshot / name, folder / name, may_link=name.endswith(".safetensors"))

    def _download(self, names: Collection[str]) -> Path:
        from huggingface_hub import snapshot_download

        name, revision, kind, commit = self._repository
        with fetching(self.title, self._remedy, name):
            snapshot = snapshot_download(
                name,
                repo_type=kind,
                revision=commit or revision,
                allow_patterns=[escape(file) for file in names],
            )
        return Path(snapshot)

    @cached_property
    def _names(self) -> frozenset[str]:
        """Names of the files, from the Hub or else from its cache."""
        from huggingface_hub import HfApi

        name, revision, _, commit = self._repository
        try:
            with fetching(self.title, self._remedy, name):
                info = HfApi().model_info(name, revision=commit or revision, timeout=PATIENCE)
                return frozenset(file.rfilename for file in info.siblings or ())
        except PipelineError:
            cached = cached_snapshot(self._repository)
            if cached is None:
                raise
            return frozenset(path.name for path in cached.iterdir())


def _check_blob(path: Path) -> None:
    """Refuse a file of the cache that is not what its name says.

    The cache names a file by its content, and files that share an artifact's bytes could have been
    written to; without this check an artifact would be made again out of the altered one.
    """
    blob = path.resolve()
    if not path.is_symlink() or not _BLOB.fullmatch(blob.name):
        return
    if len(blob.name) == 64:
        found = hash_file(blob, hashlib.sha256())
    else:
        size = blob.stat().st_size
        found = hash_file(blob, hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False))
    if found != blob.name:
        raise PipelineError(
            f"{blob} in the Hub's cache was altered: its name is the hash of another content",
            "remove that file and run again with a network, or copy the cache anew",
        )
