"""Where a model looked, as text: a small grid of characters for each word."""

import shutil
import sys

import numpy as np
from numpy.typing import NDArray

from model.patch_grid import Explanation, grid_side, place

# From no importance to the most; a patch that made the word less likely counts as none.
_SHADES, _PLAIN = "·░▒▓█", ".:+*#"
_LEAST = 0.005  # nats up to which no patch counts as important


def heat_text(explanation: Explanation, width: int | None = None, *, plain: bool = False) -> str:
    """Return a grid for each word, as many beside each other as there is room for."""
    room = shutil.get_terminal_size().columns if width is None else width
    blocks = [
        _block(word, values, _PLAIN if plain else _SHADES)
        for word, values in zip(explanation.words, explanation.maps, strict=True)
    ]
    column = max(len(line) for block in blocks for line in block) + 3
    per_line = max(1, (room + 3) // column)
    rows = []
    for start in range(0, len(blocks), per_line):
        beside = zip(*blocks[start : start + per_line], strict=True)
        rows.append(
            "\n".join("".join(part.ljust(column) for part in line).rstrip() for line in beside)
        )
    return "\n\n".join(rows)


def shows_shades() -> bool:
    """Return whether standard output can print the shades of the grid."""
    try:
        _SHADES.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _block(word: str, values: NDArray[np.float32], shades: str) -> list[str]:
    """Return a word, its top patch with that patch's importance, and the grid, line by line."""
    side, most = grid_side(len(values)), float(values.max())
    heading = [place(values), f"{most:.2f} nats"] if most > _LEAST else ["no patch", "mattered"]
    scaled = (values / most).clip(0, 1) if most > _LEAST else np.zeros_like(values)
    steps = np.ceil(scaled * (len(shades) - 1)).astype(int).reshape(side, side)
    return [word, *heading, *("".join(2 * shades[step] for step in row) for row in steps)]
