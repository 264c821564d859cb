"""LCS-558K: LLaVA's captioned images for alignment, in LLaVA's JSON with a zip of images.

The one answer of a record is the image's caption. The dataset has no split of its own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.source_layout import Chosen
from pipeline.engine.stage import SourceState, StageContext
from pipeline.hub.snapshots import Repository, at_commit, hub_state, hub_url, repository_file
from pipeline.recipe.data_sources import LcsImages
from pipeline.recipe.parts import ImagesPart

if TYPE_CHECKING:
    from pipeline.data.annotations import Annotations
    from pipeline.data.image_files import ImageFiles

Json = dict[str, Any]
TRAIN, TEST = "lcs558k", "lcs558k-test"  # origins of its images


def probe(source: LcsImages) -> SourceState:
    """Return the commit of the repository."""
    return hub_state("images", Repository(source.repository, source.revision, "dataset"))


def read(
    context: StageContext, images: ImagesPart, seed: int, drops: list[Json]
) -> dict[str, "Annotations"]:
    """Return its images and captions by origin, `lcs558k` and `lcs558k-test`.

    Raises:
        PipelineError: The file is not LLaVA's JSON.
        StorageError: It cannot be fetched.
    """
    source = _source(images)
    path = _file(context, source, source.annotations)
    name = f"{source.repository}/{source.annotations}"
    return read_lcs(path, name, source.test_share, seed, drops)


def fetch(context: StageContext, images: ImagesPart, chosen: Chosen) -> Mapping[str, "ImageFiles"]:
    """Return where the chosen images are: members of the remote zip, or all of it.

    Raises:
        StorageError: A download fails for good.
    """
    from pipeline.data.downloads import fetch_some
    from pipeline.data.image_files import ImageFiles

    source = _source(images)
    there = _repository(context, source)
    url = hub_url(source.repository, source.images, there.commit or there.revision)
    records = [*chosen[TRAIN], *chosen[TEST]]
    members = fetch_some(context, url, source.images, images, records) if url else None
    files = members or ImageFiles((_file(context, source, source.images),))
    return {TRAIN: files, TEST: files}


def read_lcs(
    path: Path, name: str, test_share: float, seed: int, drops: list[Json]
) -> dict[str, "Annotations"]:
    """Return LCS-558K's images and captions by origin, `lcs558k` and `lcs558k-test`.

    Which images are test images follows from id and seed alone, as the dataset has no split.

    Raises:
        PipelineError: The file is not LLaVA's JSON.
    """
    from pipeline.data.annotations import Annotations
    from pipeline.data.draws import draw
    from pipeline.data.llava import read_records
    from pipeline.data.schemas import CAPTIONS, drop
    from storage.packed_rows import PackedRows
    from storage.tables import as_int64, is_text

    images: dict[str, list[Json]] = {TRAIN: [], TEST: []}
    captions = {origin: PackedRows(name, CAPTIONS) for origin in images}
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
                origin = TEST if draw("test", image, seed) < test_share else TRAIN
                images[origin].append({"id": image, "file_name": file, "origin": origin})
                text = {"caption_id": number, "image_id": image, "caption": caption}
                captions[origin].add(text)
            case _:
                drops.append(drop("images", "image", number, "", "broken record", _excerpt(record)))
    return {
        origin: Annotations(
            sorted(records, key=lambda record: record["id"]),
            captions[origin],
            test=origin == TEST,
        )
        for origin, records in images.items()
    }


def _excerpt(record: object) -> str:
    return json.dumps(record)[:200]


def _source(images: ImagesPart) -> LcsImages:
    assert isinstance(images.source, LcsImages)  # this module reads no other source
    return images.source


def _repository(context: StageContext, source: LcsImages) -> Repository:
    """Return the repository at the commit that the fingerprint holds."""
    repository = Repository(source.repository, source.revision, "dataset")
    return at_commit(repository, "images", context.source)


def _file(context: StageContext, source: LcsImages, name: str) -> Path:
    return repository_file(_repository(context, source), name)
