"""What a visitor is told when a message cannot be answered."""

from collections.abc import Generator
from contextlib import contextmanager

from model.decoding import KINDS
from model.errors import ModelError


class ChatError(Exception):
    """A message that cannot be answered; the text tells its writer what to do."""


_REASONS = {
    "empty file": "The file is empty. Please send a JPEG or PNG.",
    "not an image": "This is not an image that can be read. Please send a JPEG or PNG.",
    "unsupported format": f"Images of this kind cannot be read. Please send a {KINDS}.",
    "unsupported values": "The image's pixel values are unusual. Please send a JPEG or PNG.",
    "too many pixels": "The image has too many pixels. Please make it smaller.",
    "animated": "Animated images cannot be read. Please send a single image.",
    "broken image": "The image is damaged and cannot be read. Please send another one.",
}


@contextmanager
def explained() -> Generator[None]:
    """Turn the errors of `model` into sentences for a visitor, without internal details."""
    try:
        yield
    except ModelError as error:
        reason = getattr(error, "reason", "")
        raise ChatError(_REASONS.get(reason, sentence(error.sentence))) from None


def sentence(text: str) -> str:
    """Return a text with a capital and a full stop; "" stays empty."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""
