"""From a template and plain values to one HTML text that needs nothing else."""

import base64
import io
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

HERE = Path(__file__).parent
THUMBNAIL = 256  # pixels of a picture's longer side
_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def render(template: str, **values: Any) -> str:
    """Return a page; every value is escaped, and the page may fetch and execute nothing."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    return environment.get_template(template).render(
        style=(HERE / "page.css").read_text("utf-8"), **values
    )


def thumbnail(data: bytes | None, side: int = THUMBNAIL) -> str | None:
    """Return a small JPEG of a picture as a `data:` URI, or None where it cannot be drawn."""
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (side, side))
            small = image.convert("RGB")
    except _BROKEN:
        return None
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


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
