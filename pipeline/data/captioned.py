"""Images that have only captions, from tables and folders, as annotations.

This data has no ids: an image's id is a hash of its name, so that it keeps its split when other
images are added or removed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.data.annotations import Annotations
from pipeline.data.draws import draw, id_of
from pipeline.data.schemas import CAPTIONS, drop
from storage.packed_rows import PackedRows
from storage.tables import is_text

TRAIN, TEST = "train", "test"  # origins
_SPLITS = {
    "": TRAIN,
    "train": TRAIN,
    "training": TRAIN,
    "restval": TRAIN,  # Karpathy's name for additional training images
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": TEST,
    "testing": TEST,
}


@dataclass(frozen=True)
class Captioned:
    """One record of a source about an image.

    Attributes:
        place: Where it is, for messages: a row or a member.
        file_name: Name of the image among the fetched ones.
        captions: Its captions, blank ones left out.
        split: The split's name in the source, "" where it has none.
        url: Address of the image, "" where it is a file.
    """

    place: str
    file_name: str
    captions: tuple[str, ...]
    split: str = ""
    url: str = ""


def annotations_of(
    records: Iterable[Captioned],
    test_share: float,
    seed: int,
    drops: list[dict[str, Any]],
    *,
    bare: bool = False,
) -> dict[str, Annotations]:
    """Return the images and captions of the origins `train` and `test`.

    An image that several records name gets the captions of all of them, and the split of the first.

    Args:
        records: The source's records.
        test_share: Share of the images that become test images where no record names a split.
        seed: Seed of that choice.
        drops: Receives a row for each record that has no caption or an unknown split.
        bare: Whether images need no captions.
    """
    images: dict[str, dict[str, Any]] = {}
    captions: dict[str, list[str]] = {}
    taken: set[int] = set()
    for record in records:
        name, split = record.file_name, _SPLITS.get(record.split.strip().lower())
        if not (record.captions or bare) or split is None:
            reason = "no caption" if split else "unknown split"
            drops.append(drop("images", "image", record.place, name, reason, record.split))
            continue
        if name not in images:
            key = id_of(name, taken)
            images[name] = {"id": key, "file_name": name, "split": split, "coco_url": record.url}
        captions.setdefault(name, []).extend(record.captions)
    divided = any(image["split"] == TEST for image in images.values())
    for image in images.values():
        if not divided and draw("test", image["id"], seed) < test_share:
            image["split"] = TEST
        image["origin"] = TEST if image["split"] == TEST else TRAIN
    return {origin: _origin(origin, images, captions) for origin in (TRAIN, TEST)}


def texts_of(value: object) -> tuple[str, ...]:
    """Return the captions that a field holds: a text, or a list of texts."""
    values = value if isinstance(value, list | tuple) else [value]
    texts = (text.strip() for text in values if is_text(text))
    return tuple(text for text in texts if text)


def _origin(
    origin: str, images: dict[str, dict[str, Any]], captions: dict[str, list[str]]
) -> Annotations:
    mine = sorted((i for i in images.values() if i["origin"] == origin), key=lambda i: i["id"])
    rows = (
        {"image_id": image["id"], "caption": text}
        for image in mine
        for text in captions[image["file_name"]]
    )
    return Annotations(mine, PackedRows("captions", CAPTIONS, rows), test=origin == TEST)
