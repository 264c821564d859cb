"""Fetching an exported assistant from the Hugging Face Hub into a folder, verified by digest.

The files are collected in a hidden folder beside the target, where an interrupted pull resumes,
and become visible all at once when each has the SHA-256 that the export's own list states.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import PipelineError, UnreachableError
from pipeline.hub.checksums import CARD, LONGEST, SUMS, faults, read_sums
from pipeline.hub.failures import fetching
from pipeline.hub.snapshots import Repository, parse_address
from storage.store.leases import try_lock

_NETWORK = "check the network, and run the same command again: it goes on where it stopped"
_SHOWN = 5  # names in a message
_PART = ".part"  # ending of an unfinished file
_SPARE = 64 * 2**20  # bytes that shall stay free on the disk
_HUBS_OWN = frozenset({".gitattributes"})


class Pulled(NamedTuple):
    """What was fetched.

    Attributes:
        title: Repository and commit.
        files: How many files the assistant has, without its card.
        bytes: Their size on the Hub.
        was_there: Whether the folder held them already.
        left_out: Other files of the repository, which were not fetched.
    """

    title: str
    files: int
    bytes: int
    was_there: bool
    left_out: list[str]


def pull(address: str, target: Path) -> Pulled:
    """Fetch an exported assistant into a folder, or verify that it is there.

    Args:
        address: `hf://owner/name[@revision]`.
        target: A folder that does not exist, is empty, or holds this very assistant.

    Raises:
        PipelineError: There is no such export, it is not whole, the folder holds something else,
            the disk has no room, or another process fetches it.
        UnreachableError: The Hub does not answer.
        StorageError: The folder cannot be written.
    """
    repository = _at_commit(address)
    target = target.expanduser().absolute()
    if target.exists() and not target.is_dir():
        raise PipelineError(f"{target} is a file", "name a new folder")
    partial = target.parent / f".{target.name}.{repository.commit[:16]}.partial"
    with try_lock(partial.with_suffix(".lock")) as free:
        if free is False:
            raise PipelineError(f"another process fetches {address} into {target}", "wait for it")
        sizes = _sizes(repository)
        sums = _sums(address, repository, sizes, partial)
        wanted = [*sums, *({CARD} & sizes.keys())]
        was_there = target.is_dir() and any(target.iterdir())
        if was_there:
            shutil.rmtree(partial, ignore_errors=True)
            _check_target(address, target, sums)
        else:
            _collect(address, repository, partial, sums, {name: sizes[name] for name in wanted})
            partial.rename(target)
        left_out = sorted(sizes.keys() - {*wanted, SUMS} - _HUBS_OWN)
        total = sum(sizes[name] for name in sums)
        return Pulled(repository.title, len(sums), total, was_there, left_out)


def _at_commit(address: str) -> Repository:
    """Return the repository at the commit that its revision means now."""
    from huggingface_hub import HfApi

    repository, file = parse_address(address, "main")
    if file or repository.kind != "model":
        raise PipelineError(f"{address} names no repository of a model", "write hf://owner/name")
    with fetching(address, "check the network", repository.name):
        info = HfApi().repo_info(repository.name, revision=repository.revision)
    return repository._replace(commit=str(info.sha))


def _sizes(repository: Repository) -> dict[str, int]:
    """Return the size of each file of the repository in bytes."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with fetching(f"the list of files of {repository.title}", _NETWORK, repository.name):
        entries = HfApi().list_repo_tree(
            repository.name, recursive=True, revision=repository.commit
        )
        return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


def _sums(
    address: str, repository: Repository, sizes: Mapping[str, int], partial: Path
) -> dict[str, str]:
    """Return the files of the export with their SHA-256; the repository has all of them."""
    if SUMS not in sizes:
        raise PipelineError(
            f"{address} has no {SUMS}, so nothing says which files belong to it",
            "export it again with this phivision, or use `hf download`",
        )
    if sizes[SUMS] > LONGEST:
        raise PipelineError(f"{SUMS} of {address} is too long", "export the assistant again")
    path = _fetch(repository, SUMS, sizes[SUMS], partial)
    try:
        sums = read_sums(path, address)
    except PipelineError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if lost := sorted(sums.keys() - sizes.keys()):
        raise PipelineError(
            f"{address} lacks {_listed(lost)}, which {SUMS} lists",
            "its upload was not finished, or files were removed: export it again",
        )
    return sums


def _check_target(address: str, target: Path, sums: Mapping[str, str]) -> None:
    wrong = faults(target, sums)
    if wrong:
        lines = [f"{name} ({fault})" for name, fault in sorted(wrong.items())]
        raise PipelineError(
            f"{target} is not empty and differs from {address}: {_listed(lines)}",
            "name a new folder, or remove this one",
        )


def _collect(
    address: str,
    repository: Repository,
    partial: Path,
    sums: Mapping[str, str],
    sizes: Mapping[str, int],
) -> None:
    """Fetch what is missing in the hidden folder, and verify all of it."""
    missing = sum(size for name, size in sizes.items() if not (partial / name).is_file())
    missing -= sum(path.stat().st_size for path in partial.rglob(f"*{_PART}"))
    free = shutil.disk_usage(partial).free
    if missing + _SPARE > free:
        raise PipelineError(
            f"{address} needs {missing / 2**20:,.0f} MB, and {partial.parent} has "
            f"{free / 2**20:,.0f} MB",
            "free some space, or name a folder on another disk",
        )
    for name, size in sizes.items():
        _fetch(repository, name, size, partial)
    wrong = faults(partial, sums)
    for name in wrong:
        (partial / name).unlink(missing_ok=True)
    if wrong:
        raise UnreachableError(
            f"{_listed(sorted(wrong))} of {address} do not have the SHA-256 that {SUMS} states",
            "run it again to fetch that anew; where that does not help, export the assistant again",
        )


def _fetch(repository: Repository, name: str, size: int, folder: Path) -> Path:
    """Fetch a file, from the byte at which an earlier attempt stopped.

    `hf_hub_download` would start again: it discards a partial file when it is interrupted.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    path = folder / name
    if path.is_file():
        return path
    part = path.with_name(f"{path.name}{_PART}")
    with fetching(f"{name} of {repository.title}", _NETWORK, repository.name):
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as stream:
            if stream.tell() > size:
                stream.truncate(0)
                stream.seek(0)
            http_get(
                hf_hub_url(repository.name, name, revision=repository.commit),
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(),
                expected_size=size,
                displayed_filename=name,
            )
        part.rename(path)
    return path


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
