"""LCS-558K: LLaVA's captioned images for alignment, in LLaVA's JSON with a zip of images.

The one answer of a record is the image's caption. The dataset has no split of its own.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.data.annotations import Annotations
from pipeline.data.llava import read_records
from pipeline.data.schemas import drop
from storage.tables import as_int64, is_text

Json = dict[str, Any]
TRAIN, TEST = "lcs558k", "lcs558k-test"  # origins of its images


def read_lcs(
    path: Path, name: str, test_share: float, seed: int, drops: list[Json]
) -> dict[str, Annotations]:
    """Return LCS-558K's images and captions by origin, `lcs558k` and `lcs558k-test`.

    Which images are test images follows from id and seed alone, as the dataset has no split.

    Raises:
        PipelineError: The file is not LLaVA's JSON.
    """
    found = {TRAIN: Annotations([], [], []), TEST: Annotations([], [], [])}
    seen: set[int] = set()
    for number, record in enumerate(read_records(path, name)):
        match record:
            case {"id": key, "image": file, "conversations": [_, {"value": caption}]} if (
                is_text(file) and is_text(caption) and (image := as_int64(key)) is not None
            ):
                if image in seen:
                    drops.append(drop("images", "image", image, file, "duplicate id"))
                    continue
                seen.add(image)
                origin = TEST if _draw(image, seed) < test_share else TRAIN
                row = {"id": image, "file_name": file, "origin": origin}
                found[origin].images.append(row)
                text = {"caption_id": number, "image_id": image, "caption": caption}
                found[origin].captions.append(text)
            case _:
                drops.append(drop("images", "image", number, "", "broken record", _told(record)))
    for part in found.values():
        part.images.sort(key=lambda record: record["id"])
    return found


def _draw(image_id: int, seed: int) -> float:
    text = f"test:{seed}:{image_id}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def _told(record: object) -> str:
    return json.dumps(record)[:200]
