"""Images of a run for the explorer: found by their hash, and drawn with what was marked."""

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from model.decoding import BadImageError, decode_image
from pipeline.catalog.catalog import Catalog
from storage.tables import read_table

SIDE = 224  # pixels of the longer side in the gallery
LARGE = 768  # the same of the one that is looked at
_STREAMED = 16  # rows of a file of images in memory at once
_BUFFER = 2**20  # bytes read at once; the whole column, which is the default, has 256 MB
_COLOURS = ("#e4572e", "#2f6db3", "#3c9a5f", "#b0476a", "#d9822b", "#1aa0a8")


class StoredImages:
    """The bytes of a run's images, read by hash; where each is, is looked up once."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def read(self, wanted: Collection[str]) -> dict[str, bytes]:
        """Return the content of images by hash, those that the store has."""
        by_file = self.files(wanted)
        files: dict[str, bytes] = {}
        for path, rows in by_file.items():
            files |= {rows[row]: data for row, data in _rows(path, sorted(rows))}
        return files

    def files(self, wanted: Collection[str]) -> dict[Path, dict[int, str]]:
        """Return in which files and rows images are, by hash, those that the store has."""
        by_file: dict[Path, dict[int, str]] = {}
        for sha256 in wanted:
            if sha256 in self._places:
                path, row = self._places[sha256]
                by_file.setdefault(path, {})[row] = sha256
        return by_file

    @cached_property
    def _places(self) -> dict[str, tuple[Path, int]]:
        manifest = self._catalog.manifest("images")
        paths = self._catalog.store.artifact(manifest).paths("files-*.parquet") if manifest else []
        return {
            sha256: (path, row)
            for path in paths
            for row, sha256 in enumerate(read_table(path, ["sha256"])["sha256"].to_pylist())
        }


def _rows(path: Path, wanted: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Yield rows of a file of images, and stop behind the last one."""
    left, first = list(wanted), 0
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
        for batch in file.iter_batches(_STREAMED, columns=["data"], use_threads=False):
            while left and left[0] < first + len(batch):
                yield left[0], batch["data"][left[0] - first].as_py()
                del left[0]
            first += len(batch)
            if not left:
                return


def small(data: bytes, pixels: int, side: int = SIDE) -> Image.Image | None:
    """Return a small RGB image, None where it cannot be drawn.

    Args:
        data: The file.
        pixels: More are not decoded.
        side: Pixels of the longer side, at most.
    """
    try:
        image = decode_image(data, pixels)
    except BadImageError:
        return None
    image.thumbnail((side, side))
    return image


def marked(data: bytes, pixels: int, objects: Sequence[dict[str, Any]]) -> Image.Image | None:
    """Return an image with a box and a name for each marked object, None as above.

    Args:
        data: The file.
        pixels: More are not decoded.
        objects: `category`, `x`, `y`, `width` and `height` in pixels of the file.
    """
    try:
        whole = decode_image(data, pixels)
    except BadImageError:
        return None
    scale = min(1.0, LARGE / max(whole.size))
    image = whole.resize([max(1, round(side * scale)) for side in whole.size])
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for number, item in enumerate(objects):
        colour = _COLOURS[number % len(_COLOURS)]
        left, top = item["x"] * scale, item["y"] * scale
        right, bottom = left + item["width"] * scale, top + item["height"] * scale
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        place = (left + 3, max(0.0, top - 16))
        draw.text(
            place, item["category"], fill=colour, font=font, stroke_width=2, stroke_fill="white"
        )
    return image
