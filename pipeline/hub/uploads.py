"""Bringing a folder to a repository of the Hugging Face Hub.

An upload that broke off is resumed by doing it again: what the Hub has already, by digest, is not
sent a second time. Files in Xet storage are divided into chunks for this, others are sent whole.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import PipelineError
from pipeline.hub.checksums import SUMS, read_sums

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def send_folder(
    hub: "HfApi", folder: Path, name: str, kind: Literal["model", "space"], tag: str = ""
) -> None:
    """Make a repository's branch `main` hold a folder, and name that revision.

    Files of an earlier export that this one lacks are removed from the branch; files of other
    people stay.

    Raises:
        HTTPError, OSError, ValueError, RuntimeError: As huggingface_hub raises them.
    """
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    done = hub.upload_folder(
        repo_id=name,
        repo_type=kind,
        folder_path=folder,
        commit_message="Upload by phivision",
        delete_patterns=sorted(_exported(hub, name, kind) - here) or None,
    )
    if tag:
        _name_revision(hub, name, kind, tag, done.oid)


def _exported(hub: "HfApi", name: str, kind: str) -> set[str]:
    """Return the files of an earlier export, none if there was none, or its list is damaged."""
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    with tempfile.TemporaryDirectory(prefix="phivision-sums-") as folder:
        try:
            path = hub.hf_hub_download(name, SUMS, repo_type=kind, local_dir=folder)
            return set(read_sums(Path(path), name))
        except (EntryNotFoundError, RevisionNotFoundError, PipelineError):
            return set()


def _name_revision(hub: "HfApi", name: str, kind: str, tag: str, commit: str) -> None:
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        known = hub.repo_info(name, revision=tag, repo_type=kind).sha
    except RevisionNotFoundError:
        known = None
    if known == commit:
        return
    if known is not None:
        hub.delete_tag(name, tag=tag, repo_type=kind)
    hub.create_tag(name, tag=tag, revision=commit, repo_type=kind)
