"""From the bytes of a picture to RGB pixels: the one way in, for datasets, ask and chat alike."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from model.errors import ModelError

# Pillow's JPEG reader opens MPO too; MPO has no entry of its own, and naming it is a KeyError.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


class BadImageError(ModelError):
    """A picture that cannot be used.

    Args:
        reason: One of a few fixed phrases, fit for counting.
        detail: What exactly was found.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Return a picture as upright 8-bit RGB.

    EXIF orientation is applied, transparency is laid on white, 16-bit and CMYK are converted by
    value (Pillow's plain conversion turns 16-bit pictures white).

    Args:
        data: The file's content, in any of `FORMATS` whatever its name says.
        max_pixels: Pixels above which the picture is refused before it is decoded.

    Raises:
        BadImageError: With the reason `empty file`, `not an image`, `too many pixels`,
            `animated` or `broken image`.
    """
    if not data:
        raise BadImageError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _upright_rgb(image, max_pixels)
        except UnidentifiedImageError:
            raise BadImageError("not an image", f"starts with {data[:16]!r}") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadImageError("too many pixels", str(error)) from None
        except BadImageError:
            raise
        except Exception as error:
            # Decoders raise OSError, ValueError, SyntaxError, struct.error, TypeError and more.
            raise BadImageError("broken image", f"{type(error).__name__}: {error}") from None


def _upright_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImageError("too many pixels", f"{width}x{height}")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise BadImageError("animated", f"{getattr(image, 'n_frames', 0)} frames")
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        upright = _eight_bit(upright)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return upright.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise BadImageError("broken image", "pixels are not finite")
    # Modes I and F do not say how many bits were meant; I;16 does, however dark the picture.
    sixteen = image.mode.startswith("I;16") or values.max(initial=0) > 255
    grey = np.clip(values * 255 / (65535 if sixteen else 255), 0, 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return Image.fromarray(grey)
    alpha = np.where(values == clear, 0, 255).astype(np.uint8)
    return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
