"""What one visitor, and all of them together, may ask of a server."""

from dataclasses import dataclass

MEGABYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """What one visitor, and all of them together, may ask of the server.

    Attributes:
        image_bytes: Largest image file.
        question_characters: Longest question.
        at_once: Questions that are answered at the same time.
        waiting: Questions that may wait behind them; more are turned away.
        keep_seconds: Age at which an uploaded image is deleted.
        folder_bytes: All uploaded images together; more are turned away.
    """

    image_bytes: int = 20 * MEGABYTE
    question_characters: int = 1000
    at_once: int = 2
    waiting: int = 64
    keep_seconds: int = 3600
    folder_bytes: int = 1024 * MEGABYTE
