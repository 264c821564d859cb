"""What the HTTP process knows of an assistant whose model another process owns."""

from flows.serve.link import Opening
from model.assistant_base import AssistantBase
from model.decoding import decode_image
from model.shrink import Pixels


class Served(AssistantBase):
    """A bundle's card and template, and how its images are prepared.

    Args:
        opening: What the process that owns the model says of it.
    """

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening.folder)
        self.prefix, self.max_positions = opening.prefix, opening.max_positions
        self._shrink = opening.shrink

    def pixels(self, data: bytes) -> Pixels:
        """Return an image as the encoders take it; safe for use by several threads.

        Raises:
            BadImageError: The image cannot be used.
        """
        return self._shrink(decode_image(data, self.card["max_pixels"]))
