"""Images with a caption file beside each: `a.jpg` and `a.txt`, or `a.json` with a `caption`.

The layout of img2dataset, of webdataset's tar shards, and of many training tools. Each line of a
text file is a caption. The files are in a folder, an archive, or a folder of archives (shards).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.data.source_layout import (
    SUFFIXES,
    Chosen,
    above_and_name,
    is_archive,
    local_folder,
    state_of,
)
from pipeline.engine.stage import SourceState, StageContext
from pipeline.errors import PipelineError
from pipeline.recipe.data_sources import PairImages
from pipeline.recipe.parts import ImagesPart
from storage.errors import StorageError, redact

if TYPE_CHECKING:
    from pipeline.data.annotations import Annotations
    from pipeline.data.captioned import Captioned
    from pipeline.data.image_files import ImageFiles
    from storage.archives.members import Archive

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def probe(source: PairImages) -> SourceState:
    """Return the state of the folder or archive."""
    folder = local_folder(source.root)
    return {"images": state_of(source.root if folder is None else str(folder))}


def read(
    context: StageContext, images: ImagesPart, seed: int, drops: list[dict[str, Any]]
) -> dict[str, "Annotations"]:
    """Return the images and captions of the origins `train` and `test`.

    Raises:
        PipelineError: There is no image with captions.
        StorageError: A download fails for good, or an archive cannot be read.
    """
    from pipeline.data.captioned import annotations_of
    from pipeline.data.image_files import image_limits
    from storage.archives.archive_group import ArchiveGroup

    source = _source(images)
    files = _files(context, images)
    limits = image_limits(images.max_bytes)
    with ArchiveGroup(files.paths, limits, own=files.own) as archive:
        names = archive.names()
        with context.report.track("read captions", len(names)) as tick:
            bare = source.captions == "none"
            records = _records(archive, names, tick, drops, bare=bare)
            annotations = annotations_of(records, source.test_share, seed, drops, bare=bare)
    if not any(part.images for part in annotations.values()):
        if bare:
            raise PipelineError(f"{redact(source.root)} holds no image", "check images.source.root")
        raise PipelineError(
            f"{redact(source.root)} holds no image with a caption file beside it",
            "captions of a.jpg are expected in a.txt, or in a.json as 'caption'; "
            "images.source.captions=none takes images without",
        )
    return annotations


def fetch(context: StageContext, images: ImagesPart, chosen: Chosen) -> Mapping[str, "ImageFiles"]:
    """Return where the images are: in the same place as their captions."""
    return dict.fromkeys(chosen, _files(context, images))


def _files(context: StageContext, images: ImagesPart) -> "ImageFiles":
    from pipeline.data.downloads import fetch_below, fetch_whole
    from pipeline.data.image_files import ImageFiles, image_limits
    from storage.fetch.remote import list_files

    root = _source(images).root.rstrip("/")
    folder = local_folder(root)
    if folder is not None:
        return ImageFiles(_local_archives(folder), own=True)
    above, name = above_and_name(root)
    if is_archive(name):
        return ImageFiles((fetch_whole(context, above, name, {}),))
    shards = sorted(file for file in list_files(root)[0] if file.endswith(SUFFIXES))
    if shards:
        return ImageFiles(tuple(fetch_whole(context, root, shard, {}) for shard in shards))
    return fetch_below(
        context, above, name, image_limits(images.max_bytes), lambda all_: all_.names()
    )


def _local_archives(root: Path) -> tuple[Path, ...]:
    if not root.exists():
        raise PipelineError(f"images.source.root: no such file or folder: {root}", "check the path")
    if root.is_file():
        return (root,)
    shards = [path for path in root.iterdir() if path.name.endswith(SUFFIXES) and path.is_file()]
    return tuple(sorted(shards)) or (root,)


def _records(
    archive: "Archive", names: list[str], tick: Any, drops: list[dict[str, Any]], *, bare: bool
) -> Iterator["Captioned"]:
    from pipeline.data.captioned import Captioned
    from pipeline.data.schemas import drop

    known = set(names)
    for name in names:
        tick()
        path = PurePosixPath(name)
        if path.suffix.lower() not in IMAGES:
            continue
        beside = [] if bare else [str(path.with_suffix(suffix)) for suffix in (".txt", ".json")]
        try:
            captions = (_captions(archive.read(each), each) for each in beside if each in known)
            texts = next((texts for texts in captions if texts), ())
        except (ValueError, StorageError) as error:
            fault = error.message if isinstance(error, StorageError) else str(error)
            drops.append(drop("images", "image", name, name, "unreadable captions", fault))
            continue
        yield Captioned(name, name, texts)


def _captions(data: bytes, name: str) -> tuple[str, ...]:
    """Return the captions of a file.

    Raises:
        ValueError: It is not text, or not JSON.
    """
    from pipeline.data.captioned import texts_of
    from pipeline.data.json_text import json_text

    text = json_text(data)
    if name.endswith(".txt"):
        return texts_of(text.splitlines())
    value = json.loads(text)
    return texts_of(value.get("caption")) if isinstance(value, dict) else ()


def _source(images: ImagesPart) -> PairImages:
    assert isinstance(images.source, PairImages)  # this module reads no other source
    return images.source
