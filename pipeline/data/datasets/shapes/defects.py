"""The deliberate defects of the rendered dataset.

Real datasets hold broken files and bad records; the demo has a few of each kind, so that
quarantine and filters have something to count. They are at fixed positions, not random ones:
then even a small dataset has them, and their share is exact.
"""

from typing import Any

IMAGE_PERIOD = 200
CAPTION_PERIOD = 200
# One of an image's four conversations is defective, so this is 0.25 % of the records.
CONVERSATION_PERIOD = 100
_IMAGE_PLACE, _CAPTION_PLACE, _CONVERSATION_PLACE = 7, 23, 11

# COCO itself contains this sentence.
NO_CAPTION = "There is no image here to provide a caption for."
_NOT_FOUND_PAGE = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"


def has_broken_image(index: int) -> bool:
    """Whether the file of scene `index` cannot be decoded."""
    return index % IMAGE_PERIOD == _IMAGE_PLACE


def spoil_jpeg(index: int, jpeg: bytes) -> bytes:
    """The file's bytes: some are cut off in the middle, some are a web page named .jpg."""
    if not has_broken_image(index):
        return jpeg
    return jpeg[: len(jpeg) // 2] if _alternate(index, IMAGE_PERIOD, 2) == 0 else _NOT_FOUND_PAGE


def spoil_captions(index: int, captions: list[str]) -> list[str]:
    """The captions of one image: some say that there is none, some go on for too long."""
    if index % CAPTION_PERIOD != _CAPTION_PLACE:
        return captions
    endless = " ".join(text.strip() for text in captions * 2)
    return [*captions[:-1], (NO_CAPTION, endless)[_alternate(index, CAPTION_PERIOD, 2)]]


def spoil_record(index: int, record: dict[str, Any], *, missing: str) -> dict[str, Any]:
    """A conversation record of scene `index`, in LLaVA's schema, perhaps with a defect.

    Args:
        index: The number of the scene.
        record: The intact record.
        missing: Name of an image that does not exist.

    Returns:
        The record itself, or one with a missing image, an odd number of turns, an empty answer,
        or two image markers.
    """
    if index % CONVERSATION_PERIOD != _CONVERSATION_PLACE:
        return record
    question, answer, *rest = record["conversations"]
    empty = {**answer, "value": ""}
    doubled = {**question, "value": f"{question['value']}\n<image>"}
    defects: tuple[dict[str, Any], ...] = (
        {"image": missing},
        {"conversations": [question, answer, *rest[:-1]]},
        {"conversations": [question, empty, *rest]},
        {"conversations": [doubled, answer, *rest]},
    )
    return record | defects[_alternate(index, CONVERSATION_PERIOD, len(defects))]


def _alternate(index: int, period: int, kinds: int) -> int:
    return index // period % kinds
