"""Patch embeddings of images: those of several requests together, those that are known not again.

A conversation sends its images anew with each question, so their embeddings are kept by digest, and
what the language model has made of them.
"""

import hashlib
import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch
from cachetools import LRUCache

from model.assistant import Assistant
from model.prefixes import ReadPrefix
from model.shrink import Pixels


class Shown(NamedTuple):
    """An image that is ready to be embedded, or has been.

    Attributes:
        digest: SHA-256 of the file.
        pixels: What the encoder takes; None where the patches are known.
        patches: Its patch embeddings [patch, vision].
    """

    digest: bytes
    pixels: Pixels | None
    patches: torch.Tensor | None = None


class Embeddings:
    """Embeds images and keeps what was used last.

    Args:
        assistant: Whose encoders are used.
        kept_bytes: What is kept, at most.
    """

    def __init__(self, assistant: Assistant, kept_bytes: int) -> None:
        self._assistant = assistant
        self._kept: LRUCache[bytes, torch.Tensor] = LRUCache(kept_bytes, lambda kept: kept.nbytes)
        self._read: LRUCache[bytes, ReadPrefix] = LRUCache(kept_bytes, lambda kept: kept.nbytes)
        self._lock = threading.Lock()

    def prepare(self, data: bytes) -> Shown:
        """Return an image file, decoded unless its embeddings are known; safe for several threads.

        Raises:
            BadImageError: The image cannot be used.
        """
        known = self.recall(hashlib.sha256(data).digest())
        if known.patches is not None:
            return known
        return known._replace(pixels=self._assistant.pixels(data))

    def recall(self, digest: bytes, pixels: Pixels | None = None) -> Shown:
        """Return an image whose pixels or patches are known; safe for several threads."""
        with self._lock:
            return Shown(digest, pixels, self._kept.get(digest))

    def of(self, requests: Sequence[Sequence[Shown]]) -> list[torch.Tensor]:
        """Return for each request the embeddings of its images [image, patch, vision].

        All that are not known are embedded in one forward pass. A request without images has the
        zeros of one.
        """
        made: dict[bytes, torch.Tensor] = {}
        new: dict[bytes, Pixels] = {}
        for image in (image for images in requests for image in images):
            if image.patches is not None:
                made[image.digest] = image.patches
            elif image.pixels is not None:
                new[image.digest] = image.pixels
        if new:
            encoded = self._assistant.encoders.encode_shrunk(list(new.values()))
            for digest, patches in zip(new, encoded, strict=True):
                made[digest] = patches.clone()  # a slice would keep all of them in memory
                self._keep(digest, made[digest])
        return [
            self._assistant.shown([made[each.digest] for each in images]) for images in requests
        ]

    def prefix(self, image: Shown) -> ReadPrefix | None:
        """Return what the language model has made of an image, None where it is not known."""
        return self._read.get(image.digest)

    def keep_prefix(self, image: Shown, prefix: ReadPrefix) -> None:
        """Keep what the language model has made of an image."""
        if prefix.nbytes <= self._read.maxsize:
            self._read[image.digest] = prefix

    def _keep(self, digest: bytes, patches: torch.Tensor) -> None:
        with self._lock:
            if patches.nbytes <= self._kept.maxsize:
                self._kept[digest] = patches
