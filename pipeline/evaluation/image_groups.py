"""Work in groups about so many images, at most: each image is read once for all of its work."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def by_images(
    items: Sequence[Item], image_of: Callable[[Item], int], most: int
) -> Iterator[tuple[list[int], list[Item]]]:
    """Yield images, in order and at most `most` at a time, with all items about them.

    Args:
        items: Items, each about one image.
        image_of: Returns an item's image.
        most: Images at a time, at most.
    """
    about: dict[int, list[Item]] = {}
    for item in items:
        about.setdefault(image_of(item), []).append(item)
    images = sorted(about)
    for start in range(0, len(images), most):
        group = images[start : start + most]
        yield group, [item for image in group for item in about[image]]
