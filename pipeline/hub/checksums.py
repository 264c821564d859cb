"""`SHA256SUMS`: which files make up an exported assistant, with the SHA-256 of each.

The Hub knows a SHA-256 of large files only, and an upload may take several commits. This list says
which files belong together, wherever the folder lies; `sha256sum --check SHA256SUMS` reads it, too.
The model card is not on it, since people edit it on the Hub.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pipeline.errors import PipelineError
from storage.filesystem import hash_file
from storage.names import name_fault, shown

SUMS = "SHA256SUMS"
CARD = "README.md"
LONGEST = 2**20  # bytes of a list

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
# What an export consists of. Nothing of it is a program or a pickle.
_KINDS = frozenset({".json", ".jinja", ".md", ".txt", ".safetensors", ".gguf"})
_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
_MODELFILE = "Modelfile"  # ollama's


def write_sums(folder: Path) -> None:
    """Write the list of all files below a folder, except the card."""
    names = sorted(path.relative_to(folder).as_posix() for path in files_below(folder))
    lines = [
        f"{hash_file(folder / name, hashlib.sha256())}  {name}\n"
        for name in names
        if name not in {SUMS, CARD}
    ]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def read_sums(path: Path, title: str) -> dict[str, str]:
    """Return the SHA-256 of each file by name, from a list that somebody else may have written.

    Raises:
        PipelineError: It is not such a list, or names what does not belong in an export.
    """
    sums = {}
    lines = path.read_text("utf-8", "replace").splitlines()
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise PipelineError(
                f"line {number} of {SUMS} of {title} is not a SHA-256 and a name",
                "export the assistant again",
            )
        name = match[2]
        fault = name_fault(name) or _kind_fault(name)
        if fault:
            raise PipelineError(
                f"{SUMS} of {title} names {shown(name)}: {fault}",
                "it was not written by `phivision export`; do not use it",
            )
        sums[name] = match[1]
    return sums


def faults(folder: Path, sums: Mapping[str, str]) -> dict[str, str]:
    """Return what is wrong with the files below a folder, by name: missing, altered or unlisted."""
    faults_of = {}
    for name, digest in sums.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            faults_of[name] = "missing"
        elif hash_file(path, hashlib.sha256()) != digest:
            faults_of[name] = "altered"
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if name not in sums and name not in {SUMS, CARD}:
            faults_of[name] = f"not in {SUMS}"
    return faults_of


def files_below(folder: Path) -> list[Path]:
    """Return the files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _kind_fault(name: str) -> str:
    path = PurePosixPath(name)
    is_known = path.suffix.lower() in _KINDS | _IMAGES or path.name == _MODELFILE
    return "" if is_known else "neither weights, nor JSON, text or an image"
