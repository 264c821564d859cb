"""Where a model looked, as an image: the patches that mattered glow, the rest is dark.

The chat uses this file too, so it imports neither stores nor Prefect.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model.patch_grid import Explanation, View, grid_side, place

SIDE = 256  # pixels of the longer side of an overlay
_COLUMNS = 4  # overlays beside each other on a sheet
_TEXT = 36  # pixels of two lines of text above each
_GLOW = np.array([255, 90, 0], np.float32)
_DARK, _MOST = 0.45, 0.6  # what is left of the image, and the strongest glow on it


def overlay(
    image: Image.Image, view: View, values: NDArray[np.float32], side: int = SIDE
) -> Image.Image:
    """Return a small copy of an image on which the patches that mattered for a word glow.

    What the encoder does not see is dark and does not glow.

    Args:
        image: The upright RGB image.
        view: The part of it that the grid divides.
        values: Importance of each patch in nats, row by row; what is below 0 does not glow.
        side: Pixels of the longer side.
    """
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    pixels = np.asarray(image.convert("RGB").resize((width, height)), np.float32)
    heat = _heat(values, view, width / image.width, height / image.height, (height, width))
    shown = pixels * (_DARK + (1 - _DARK) * np.maximum(heat, 0))[..., None]
    strength = _MOST * np.maximum(heat, 0)[..., None]
    shown = shown * (1 - strength / 2) + _GLOW * (strength / 2)
    shown[heat < 0] *= _DARK  # outside of what is seen
    return Image.fromarray(shown.clip(0, 255).astype(np.uint8))


def sheet(image: Image.Image, explanation: Explanation, most: int | None = None) -> Image.Image:
    """Return one image with an overlay for each word, and above it the word and its top patch.

    Args:
        image: The upright RGB image.
        explanation: What mattered for the words.
        most: Words drawn, at most: those for which a patch mattered most; all if omitted.
    """
    peaks = explanation.maps.max(axis=1)
    chosen = sorted(np.argsort(-peaks, kind="stable")[:most].tolist())
    maps = [explanation.maps[number] for number in chosen]
    words = [explanation.words[number] for number in chosen]
    parts = [overlay(image, explanation.view, values) for values in maps]
    width, height = parts[0].width + 8, parts[0].height + _TEXT + 8
    columns = min(_COLUMNS, len(parts))
    rows = math.ceil(len(parts) / columns)
    drawn = Image.new("RGB", (columns * width, rows * height), "white")
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(13)
    for number, (word, values, part) in enumerate(zip(words, maps, parts, strict=True)):
        x, y = number % columns * width + 4, number // columns * height + 4
        label = f"{word}\n{place(values)}" if values.max() > 0 else f"{word}\nno patch mattered"
        pen.multiline_text((x, y), label, fill="black", font=font)
        drawn.paste(part, (x, y + _TEXT))
    return drawn


def png(image: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _heat(
    values: NDArray[np.float32], view: View, across: float, down: float, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the importance of each pixel of a scaled image, 0 to 1, and -1 outside of the view."""
    side, most = grid_side(len(values)), max(float(values.max()), 1e-6)
    grid = (values / most).clip(0, 1).reshape(side, side)
    rows = _cells(shape[0], down, view.top, view.height, side)
    columns = _cells(shape[1], across, view.left, view.width, side)
    seen = (rows >= 0)[:, None] & (columns >= 0)[None, :]
    return np.where(seen, grid[rows[:, None], columns[None, :]], -1).astype(np.float32)


def _cells(pixels: int, scale: float, start: float, length: float, side: int) -> NDArray[np.int64]:
    """Return the row (or column) of the grid that each pixel is in, -1 where in none."""
    middles = (np.arange(pixels) + 0.5) / scale
    cells = np.floor((middles - start) / length * side).astype(np.int64)
    return np.where((cells >= 0) & (cells < side), cells, -1)
