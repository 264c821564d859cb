"""The Hugging Face Hub: the commit that a revision means now, and files from its cache.

Everything comes through the Hub's own cache (HF_HOME, HF_HUB_CACHE), so that cached files need no
network, and with HF_HUB_OFFLINE=1 only the cache is used.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

from pipeline.engine.stage import SourceState
from pipeline.errors import PipelineError, UnreachableError
from pipeline.hub.failures import fetching
from storage.errors import StorageError
from storage.filesystem import replace_file

HUB = "hf://"
PATIENCE = 5.0  # seconds to wait for the Hub's answer about a repository

_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ADDRESS = re.compile(
    r"hf://(?P<kind>datasets/|models/)?(?P<name>[\w.-]+/[\w.-]+)"
    r"(@(?P<revision>refs/(pr|convert)/[\w.-]+|[^/@]+))?(/(?P<file>[^@]+))?"
)


class Repository(NamedTuple):
    """A repository of the Hub at one revision.

    Attributes:
        name: owner/name.
        revision: Commit, branch or tag.
        kind: As the Hub calls it.
        commit: The commit of the revision, "" if it is not known yet.
        folder: The folder in it that is meant, "" for the whole.
    """

    name: str
    revision: str
    kind: Literal["model", "dataset"] = "model"
    commit: str = ""
    folder: str = ""

    @property
    def title(self) -> str:
        """The name to show to users."""
        inside = f"/{self.folder}" if self.folder else ""
        return f"{self.name}{inside} at {self.revision}"

    @property
    def address(self) -> str:
        """The `hf://` address, at the commit where that is known."""
        kind = "datasets/" if self.kind == "dataset" else ""
        revision = quote(self.commit or self.revision, safe="")
        inside = f"/{self.folder}" if self.folder else ""
        return f"{HUB}{kind}{self.name}@{revision}{inside}"


def is_name(text: str) -> bool:
    """Return whether a text has the form of a repository's name, owner/name."""
    return _NAME.fullmatch(text) is not None


def parse_address(address: str, revision: str) -> tuple[Repository, str]:
    """Return the repository of an `hf://` address, and the file in it that it names or "".

    Args:
        address: `hf://[datasets/]owner/name[@revision][/file]`.
        revision: Used if the address names no revision.

    Raises:
        PipelineError: It has another form.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise PipelineError(
            f"{address} names no repository",
            "write hf://owner/name, hf://owner/name@revision or hf://datasets/owner/name/file.json",
        )
    kind = "dataset" if match["kind"] == "datasets/" else "model"
    named = unquote(match["revision"]) if match["revision"] else revision
    return Repository(match["name"], named, kind), match["file"] or ""


def hub_state(label: str, repository: Repository) -> SourceState:
    """Return the commit of a branch, so that a moved one is noticed; nothing for a commit.

    If the commit cannot be found out now, the state is empty, which counts as unchanged.

    Raises:
        PipelineError: The Hub refuses, and this machine's cache does not know the branch.
    """
    if _COMMIT.fullmatch(repository.revision):
        return {}
    commit = commit_of(repository)
    return {label: {"commit": commit} if commit else {}}


def at_commit(repository: Repository, label: str, state: SourceState) -> Repository:
    """Return a repository at the commit that a source state names, if it names one."""
    return repository._replace(commit=state.get(label, {}).get("commit", ""))


def commit_of(repository: Repository) -> str | None:
    """Return the commit that a revision means now, None if that cannot be found out.

    Without a network, the commit that this machine's cache last saw is used.

    Raises:
        PipelineError: The Hub refuses, and the cache does not know the revision.
    """
    from huggingface_hub import HfApi, constants

    name, revision, kind = repository[:3]
    if _COMMIT.fullmatch(revision):
        return revision
    if constants.HF_HUB_OFFLINE:
        return _cached_commit(repository)
    try:
        with fetching(repository.title, "check the network", name):
            info = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=PATIENCE)
    except UnreachableError:
        return _cached_commit(repository)
    except PipelineError:
        if cached := _cached_commit(repository):
            return cached
        raise
    return info.sha


def hub_file(
    repository: str, filename: str, revision: str, kind: Literal["model", "dataset"] = "dataset"
) -> Path:
    """Return the local path of one file of a repository, fetched where it is not cached.

    Raises:
        UnreachableError: The Hub cannot be reached now.
        PipelineError: The repository, revision or file does not exist, or may not be read.
    """
    from huggingface_hub import hf_hub_download

    with fetching(
        f"{filename} of {repository} at {revision}",
        "check the network and the revision, or give the data as local files",
        repository,
    ):
        return Path(hf_hub_download(repository, filename, repo_type=kind, revision=revision))


def repository_file(repository: Repository, filename: str) -> Path:
    """Return the local path of one file of a repository at its commit, as `hub_file` does."""
    name, revision, kind, commit = repository[:4]
    path = hub_file(name, filename, commit or revision, kind)
    note_commit(repository, commit)
    return path


def note_commit(repository: Repository, commit: str) -> None:
    """Record the commit of a branch in the cache, as a download by the branch's name does.

    Otherwise files fetched by their commit could not be found later without a network.
    """
    if commit and not _COMMIT.fullmatch(repository.revision):
        with suppress(OSError, StorageError):  # the cache may be read-only
            replace_file(_reference(repository), commit.encode())


def hub_url(repository: str, filename: str, revision: str) -> str | None:
    """Return the address of a file that is not cached, or None if it is, or the Hub is offline."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    known = {"repo_type": "dataset", "revision": revision}
    if constants.HF_HUB_OFFLINE or isinstance(
        try_to_load_from_cache(repository, filename, **known), str
    ):
        return None
    return hf_hub_url(repository, filename, **known)


def cached_snapshot(repository: Repository) -> Path | None:
    """Return the folder of a commit in this machine's cache, None if it has none of its files."""
    commit = repository.commit or repository.revision
    if not _COMMIT.fullmatch(commit):
        commit = _cached_commit(repository) or ""
    path = _cache(repository) / "snapshots" / commit
    return path if commit and path.is_dir() else None


def _cached_commit(repository: Repository) -> str | None:
    try:
        text = _reference(repository).read_text().strip()
    except (OSError, ValueError):
        return None
    return text if _COMMIT.fullmatch(text) else None


def _reference(repository: Repository) -> Path:
    return _cache(repository) / "refs" / repository.revision


def _cache(repository: Repository) -> Path:
    """Return the folder of a repository in this machine's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repository.name, repo_type=repository.kind)
    return Path(constants.HF_HUB_CACHE) / folder
