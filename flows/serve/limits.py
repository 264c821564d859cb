"""What one request, and all of them together, may ask of the server."""

from dataclasses import dataclass

from flows.inference.limits import MEGABYTE


@dataclass(frozen=True)
class ServeLimits:
    """Limits of the server.

    Attributes:
        body_bytes: Largest body of a request, its images in base64 included.
        image_bytes: Largest image file.
        images: Images of a request, at most, those of earlier messages included.
        messages: Messages of a request, at most.
        characters: Characters of all texts of a request.
        answer_tokens: Longest answer that may be asked for; a model may have room for less.
        stops: Texts that end an answer, at most.
        files: Uploaded images that are kept, at most.
        files_bytes: All of them together.
        file_seconds: How long each is kept.
        fetch_seconds: How long an image at another address may take.
    """

    body_bytes: int = 32 * MEGABYTE
    image_bytes: int = 20 * MEGABYTE
    images: int = 16
    messages: int = 64
    characters: int = 20_000
    answer_tokens: int = 512
    stops: int = 4
    files: int = 1000
    files_bytes: int = 256 * MEGABYTE
    file_seconds: int = 3600
    fetch_seconds: float = 10.0
