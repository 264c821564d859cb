"""What one visitor, and all of them together, may ask of a server."""

from dataclasses import dataclass

from flows.inference.limits import MEGABYTE


@dataclass(frozen=True)
class Limits:
    """What one visitor, and all of them together, may ask of the server.

    Attributes:
        image_bytes: Largest image file.
        question_characters: Longest question.
        answer_tokens: Longest answer that may be asked for; a model may have room for less.
        beams: Most texts that are searched side by side for an answer.
        temperature: Highest temperature; above 2 most models write noise.
        models: Models in memory at the same time. Two, because two can be compared; the one that
            was used longest ago leaves when another one is chosen.
        at_once: Questions that are answered at the same time.
        waiting: Questions that may wait behind them; more are turned away.
        keep_seconds: Age at which an uploaded image is deleted.
        folder_bytes: All uploaded images together; more are turned away.
    """

    image_bytes: int = 20 * MEGABYTE
    question_characters: int = 1000
    answer_tokens: int = 512
    beams: int = 8
    temperature: float = 2.0
    models: int = 2
    at_once: int = 16
    waiting: int = 64
    keep_seconds: int = 3600
    folder_bytes: int = 1024 * MEGABYTE
