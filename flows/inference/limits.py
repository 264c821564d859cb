"""How much one engine takes on."""

from dataclasses import dataclass

MEGABYTE = 2**20


@dataclass(frozen=True)
class EngineLimits:
    """Limits of an engine.

    Attributes:
        at_once: Texts that are written side by side.
        waiting: Requests that may wait behind them; more are refused.
        kept_bytes: Embeddings of images that are kept for later questions about them, and as much
            of what the language model has made of images.
    """

    at_once: int = 16
    waiting: int = 64
    kept_bytes: int = 256 * MEGABYTE
