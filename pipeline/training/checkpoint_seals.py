"""Hashes of checkpoints, written beside them, so that a flipped bit is noticed.

A killed training may be resumed days later, and PyTorch reads altered weights without an error.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from storage.filesystem import hash_file, replace_file

KEPT = 8  # hashes kept per checkpoint; two are enough unless several kills follow each other


def seal(new: Path, target: Path) -> None:
    """Record the hash of `new` as valid for `target`; to be called before it is renamed.

    Earlier hashes stay recorded as well, because a kill may come before the rename.
    """
    known = [hash_file(new, hashlib.sha256()), *_known(target)]
    replace_file(_beside(target), "\n".join(known[:KEPT]).encode())


def drop_altered(folder: Path, say: Callable[[str], None]) -> None:
    """Remove a folder of checkpoints if one of them was altered, and say so."""
    for path in sorted(folder.glob("*.ckpt")):
        if hash_file(path, hashlib.sha256()) not in _known(path):
            say(f"  {path.name} was altered since it was written: the training starts over")
            shutil.rmtree(folder)
            return


def _known(target: Path) -> list[str]:
    path = _beside(target)
    return path.read_text().split() if path.is_file() else []


def _beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")
