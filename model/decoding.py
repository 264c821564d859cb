"""Decode the bytes of an image to RGB pixels, the same way for datasets, ask and chat."""

import io
import threading
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from model.errors import ModelError

# Pillow's JPEG reader opens MPO too; MPO has no entry of its own, and naming it is a KeyError.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
KINDS = "JPEG, PNG, WebP, BMP, GIF or TIFF"  # the same for people
# Formats of several images of which the first is used: they are pages or views, not animations.
_FIRST_COUNTS = frozenset({"MPO", "TIFF"})

# First bytes of `FORMATS`; "RIFF", four bytes of size and "WEBP" are checked below.
_OURS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
)
# JPEG 2000 (file, codestream), JPEG XL (file, codestream), Photoshop, icon, DDS, SVG, Netpbm.
_OTHERS = (
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"\xff\x0a"),
    *(b"8BPS", b"\0\0\1\0", b"DDS ", b"<svg", *(b"P%d\n" % kind for kind in range(1, 8))),
)
_BOXES = frozenset({b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"})


class BadImageError(ModelError):
    """An image that cannot be used.

    Args:
        reason: One of a few fixed phrases, so that reasons can be counted.
        detail: What exactly is wrong.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


class _Quiet:
    """Suppresses Pillow's warnings about odd files while any thread decodes.

    Python's warning filters belong to the whole process: threads that each change and restore them
    restore each other's. So the first thread to enter changes them, the last to leave restores.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *failure: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.__exit__(None, None, None)


QUIET = _Quiet()  # for code that decodes without `decode_image`


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Return an image as upright 8-bit RGB; safe for use by several threads.

    EXIF orientation is applied, transparency is laid on white, 16-bit and CMYK are converted by
    value (Pillow's plain conversion turns 16-bit images white). Floats are used from 0 to 1 or
    from 0 to 255, 32-bit integers from 0 to 255 or from 0 to 65535. Of a TIFF with several pages
    the first is used.

    Args:
        data: The file's content, in any of `FORMATS` whatever its name says.
        max_pixels: Pixels above which the image is refused before it is decoded.

    Raises:
        BadImageError: With the reason `empty file`, `not an image`, `unsupported format`,
            `unsupported values`, `too many pixels`, `animated` or `broken image`.
    """
    if not data:
        raise BadImageError("empty file")
    with QUIET:
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _upright_rgb(image, max_pixels)
        except UnidentifiedImageError:
            raise BadImageError(_unidentified(data), f"starts with {data[:16]!r}") from None
        except Image.DecompressionBombError as error:
            raise BadImageError("too many pixels", str(error)) from None
        except BadImageError:
            raise
        except Exception as error:
            # Decoders raise OSError, ValueError, SyntaxError, struct.error, TypeError and more.
            raise BadImageError("broken image", f"{type(error).__name__}: {error}") from None


def _unidentified(data: bytes) -> str:
    """Return why Pillow found none of `FORMATS` in a file, by its first bytes."""
    head = data[:16]
    if head.startswith(_OURS) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return "broken image"
    if head.startswith(_OTHERS) or (head[4:8] == b"ftyp" and head[8:12] in _BOXES):
        return "unsupported format"
    return "not an image"


def _upright_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImageError("too many pixels", f"{width}x{height}")
    if getattr(image, "n_frames", 1) > 1 and image.format not in _FIRST_COUNTS:
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
    grey = values * 255 / _white(image.mode, values)
    # A float is seldom exactly the grey it was made from; 3 / 255 in 32 bits may end below 3.
    grey = (np.rint(grey) if image.mode == "F" else grey).astype(np.uint8)
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return Image.fromarray(grey)
    alpha = np.where(values == clear, 0, 255).astype(np.uint8)
    return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])


def _white(mode: str, values: NDArray[np.float64]) -> int:
    """Return the value that means white: 1, 255 or 65535.

    Modes I and F do not state it, so it is the smallest of these that no pixel exceeds. Pixels
    outside are measurements (heights, angles) or labels; any guess would make them black or white
    images that training would use like any other.

    Raises:
        BadImageError: There are pixels below 0, above the largest white, or NaN.
    """
    if mode.startswith("I;16"):  # the mode states it, however dark the image
        return 65535
    lowest, highest = values.min(), values.max()
    if lowest >= 0:
        if mode == "F" and highest < 1.001:  # rounding may end a little above 1
            return 1
        if highest <= 255:
            return 255
        if mode == "I" and highest <= 65535:
            return 65535
    raise BadImageError("unsupported values", f"pixels from {lowest:g} to {highest:g}")
