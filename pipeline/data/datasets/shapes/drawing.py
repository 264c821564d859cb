"""One scene as an image.

Invariant: the image is a pure function of the scene; what is drawn is the polygon that the
annotations describe.
"""

import io
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from pipeline.data.datasets.shapes.scenes import Scene, SceneObject, generator, outline

_JPEG_QUALITY = 92
_SUPERSAMPLING = 4
_NOISE = 4


def draw(scene: Scene) -> Image.Image:
    """The image of a scene, in RGB."""
    image = Image.fromarray(_backdrop(scene))
    for item in scene.objects:
        _paint(image, scene, item)
    return image


def encode(image: Image.Image) -> bytes:
    """The image as JPEG, with colours stored at half resolution as cameras do."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _backdrop(scene: Scene) -> UInt8[np.ndarray, "height width rgb"]:
    """A linear fade between two colours, with a little noise as a camera has."""
    across = np.linspace(-0.5, 0.5, scene.width) * math.cos(scene.slope)
    down = np.linspace(-0.5, 0.5, scene.height) * math.sin(scene.slope)
    fade = (0.5 + (across[None, :] + down[:, None]) / math.sqrt(2))[..., None]
    start, end = np.array(scene.backdrop, dtype=np.float64)
    pixels = scene.width * scene.height
    random_bytes = generator(scene.seed, scene.index, "noise").randbytes(pixels)
    noise = np.frombuffer(random_bytes, dtype=np.uint8) % (2 * _NOISE + 1)
    grain = noise.reshape(scene.height, scene.width, 1).astype(np.float64) - _NOISE
    return (start + (end - start) * fade + grain).clip(0, 255).astype(np.uint8)


def _paint(image: Image.Image, scene: Scene, item: SceneObject) -> None:
    """Paste one object into the image; a larger mask, reduced, gives it smooth edges."""
    corners = outline(scene, item)
    left, top = (math.floor(min(axis)) for axis in zip(*corners, strict=True))
    right, bottom = (math.ceil(max(axis)) for axis in zip(*corners, strict=True))
    factor = _SUPERSAMPLING
    mask = Image.new("L", ((right - left) * factor, (bottom - top) * factor))
    # Pillow counts pixel centres as whole numbers, hence the half.
    ImageDraw.Draw(mask).polygon(
        [((x - left) * factor - 0.5, (y - top) * factor - 0.5) for x, y in corners], fill=255
    )
    image.paste(item.paint, (left, top), mask.reduce(factor))
