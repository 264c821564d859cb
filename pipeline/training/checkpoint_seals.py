"""What a checkpoint should hold, written beside it, so that a bit that flips there is noticed.

A training may lie killed for days before somebody goes on with it, and PyTorch reads altered
weights without a word.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from storage.filesystem import hash_file, replace_file

KEPT = 8  # contents that are known of one checkpoint; two are enough but for kills in a row


def seal(new: Path, target: Path) -> None:
    """Write down that `target` may hold what `new` holds; to be called before it is renamed.

    What it held before stays written down as well, because a kill may come before the rename.
    """
    known = [hash_file(new, hashlib.sha256()), *_known(target)]
    replace_file(_beside(target), "\n".join(known[:KEPT]).encode())


def drop_altered(folder: Path, say: Callable[[str], None]) -> None:
    """Remove a folder of checkpoints if one of them is not as it was written, and say so.

    Args:
        folder: The folder; it need not exist.
        say: Told that the training starts over.
    """
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
