"""Images for the benchmarks of `phivision serve`, as many different ones as are asked for."""

import io
import random

from PIL import Image, ImageDraw


def scene(number: int) -> bytes:
    """Return a PNG of 128 by 128 pixels with three discs, another one for each number."""
    drawn = random.Random(number)

    def colour() -> tuple[int, int, int]:
        return drawn.randrange(256), drawn.randrange(256), drawn.randrange(256)

    image = Image.new("RGB", (128, 128), colour())
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        left, top = drawn.randrange(90), drawn.randrange(90)
        draw.ellipse((left, top, left + 30, top + 30), fill=colour())
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
