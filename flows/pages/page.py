"""Render a template with plain values as one self-contained HTML text."""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageFile

from model.decoding import FORMATS, QUIET

HERE = Path(__file__).parent
THUMBNAIL = 256  # pixels of an image's longer side
MOST_PIXELS = 2**26  # decoded for a thumbnail
_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def render(template: str, scripts: Sequence[str], **values: Any) -> str:
    """Return a page; every value is escaped, and the page may fetch nothing."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    return environment.get_template(template).render(
        style=(HERE / "page.css").read_text("utf-8"),
        scripts=scripts,
        allowed=" ".join(f"'sha256-{_sha256(text)}'" for text in scripts) or "'none'",
        **values,
    )


def own_script(name: str) -> str:
    """Return a script of this folder."""
    return (HERE / name).read_text("utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def thumbnail(
    data: bytes | None, side: int = THUMBNAIL, *, torn: bool = False, webp: int | None = None
) -> str | None:
    """Return a small copy of an image as a `data:` URI, or None where it cannot be drawn.

    Args:
        data: The image's file.
        side: Pixels of the longer side, at most.
        torn: Draw the readable part of a truncated file.
        webp: Quality of a WebP, which is half as large; a JPEG of good quality if None.
    """
    if data is None:
        return None
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = torn  # ty: ignore[invalid-assignment]
    try:
        with QUIET, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.draft("RGB", (side, side))  # reads a JPEG at an eighth of its size
            if math.prod(image.size) > MOST_PIXELS:
                return None
            small = image.convert("RGB")
    except _BROKEN:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    small.thumbnail((side, side))
    return jpeg_uri(small) if webp is None else _uri(small, "webp", webp)


def jpeg_uri(image: Image.Image) -> str:
    """Return an RGB image as a JPEG in a `data:` URI."""
    return _uri(image, "jpeg", 82)


def _uri(image: Image.Image, kind: str, quality: int) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, quality=quality)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def figure(value: object) -> str:
    """Return a value as people read it: floats with four digits, large whole numbers in groups."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isfinite(value) and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
