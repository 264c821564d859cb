"""Choices that follow from an image's id and the seed alone.

They are independent of which other images there are, so a growing dataset never moves an image.
"""

import hashlib


def draw(purpose: str, image_id: int, seed: int) -> float:
    """Return a number in [0, 1), uniform over ids and independent between purposes."""
    text = f"{purpose}:{seed}:{image_id}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def rank(image_id: int, seed: int) -> tuple[float, int]:
    """Return the sort key by which images are chosen where not all are used, lowest first."""
    return draw("subset", image_id, seed), image_id


def id_of(name: str, taken: set[int]) -> int:
    """Return an id for an image that has only a name, and add it to those that are taken.

    It has 52 bits, which every JSON reader keeps exactly.
    """
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 12
    while key in taken:  # a collision: one in some thousand datasets of a million images
        key += 1
    taken.add(key)
    return key
