"""Which part of an image an encoder sees, in the pixels of the image.

Encoders resize an image and crop its middle (or pad it), so a patch covers another place of the
image than its row and column suggest. The steps are read from the transform that prepares the
images, so that there is no second description of it that could differ.
"""

from collections.abc import Sequence
from typing import Any

from torchvision.transforms import CenterCrop, Resize

from model.errors import ModelError
from model.patch_grid import View

# These two are classes of open_clip and of timm alike, with the same attributes.
_KEEP_RATIO, _CROP_OR_PAD = "ResizeKeepRatio", "CenterCropOrPad"
_Size = tuple[int, int]


def view_of(preprocess: Any, width: int, height: int) -> View:
    """Return what is seen of an image of `width` by `height` pixels.

    Args:
        preprocess: The transform of a `PatchEncoder`.
        width: Width of the upright image.
        height: Its height.

    Raises:
        ModelError: The transform has a step that open_clip and timm do not use.
    """
    resized, seen = (height, width), (0, 0, height, width)  # top, left, height, width
    for step in preprocess.transforms:
        name = type(step).__name__
        if isinstance(step, Resize):
            resized = _resized(step.size, resized)
        elif name == _KEEP_RATIO:
            resized = _keeping_ratio(step.size, step.longest, resized)
        elif isinstance(step, CenterCrop) or name == _CROP_OR_PAD:
            seen = _middle(_pair(step.size), resized)
            continue
        elif "Resize" in name or "Crop" in name or "Pad" in name:
            raise ModelError(f"the encoder's step {step} is unknown, so patches cannot be located")
        else:
            continue
        seen = (0, 0, *resized)
    down, across = resized[0] / height, resized[1] / width
    top, left, tall, wide = seen
    return View(left / across, top / down, wide / across, tall / down)


def _pair(size: int | Sequence[int]) -> _Size:
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[-1]))


def _resized(size: int | Sequence[int], before: _Size) -> _Size:
    """Return height and width after torchvision's `Resize`; one number is the shorter side."""
    if not isinstance(size, int) and len(size) == 2:
        return _pair(size)
    short, (height, width) = _pair(size)[0], before
    if width <= height:
        return int(short * height / width), short
    return short, int(short * width / height)


def _keeping_ratio(size: _Size, longest: float, before: _Size) -> _Size:
    ratios = [side / target for side, target in zip(before, size, strict=True)]
    ratio = max(ratios) * longest + min(ratios) * (1 - longest)
    return round(before[0] / ratio), round(before[1] / ratio)


def _middle(size: _Size, of: _Size) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the middle; padding has a negative edge."""
    starts = [
        round((side - part) / 2.0) if part <= side else -((part - side) // 2)
        for part, side in zip(size, of, strict=True)
    ]
    return starts[0], starts[1], *size
