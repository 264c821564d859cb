"""A user's dataset in COCO's layout: a local folder, or a URL with the same names below it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.source_layout import (
    SPLITS,
    Chosen,
    is_archive,
    local_files,
    local_folder,
    remote_files,
    remote_parts,
    state_of,
)
from pipeline.engine.stage import SourceState, StageContext
from pipeline.errors import PipelineError
from pipeline.recipe.data_sources import FolderImages
from pipeline.recipe.parts import ImagesPart
from storage.errors import StorageError, redact

if TYPE_CHECKING:
    from pipeline.data.annotations import Annotations
    from pipeline.data.image_files import ImageFiles
    from storage.archives.members import Archive


def probe(source: FolderImages) -> SourceState:
    """Return the state of annotations and images of each split."""
    if local_folder(source.root) is None:
        return dict(remote_parts(source.root).values())
    files = local_files(source.root)
    return {name: state_of(str(path)) for name, path in sorted(files.items())}


def read(
    context: StageContext, images: ImagesPart, seed: int, drops: list[dict[str, Any]]
) -> dict[str, "Annotations"]:
    """Return the annotations of `train2017` and of `val2017`.

    Raises:
        PipelineError: A part of the layout is missing, or a file is not in its format.
        StorageError: A download fails for good.
    """
    from pipeline.data.annotations import read_coco

    del seed
    root = _root(images)
    # Links in the user's own folder may lead anywhere.
    own = local_folder(root) is not None
    if own:
        path = local_files(root)["annotations"]
    else:
        path = _remote_annotations(context, root, remote_files(root)["annotations"])
    return {split: read_coco(path, split, drops, own=own) for split in SPLITS}


def fetch(context: StageContext, images: ImagesPart, chosen: Chosen) -> Mapping[str, "ImageFiles"]:
    """Return where the images of each split are; remote ones are fetched.

    Raises:
        StorageError: A download fails for good.
    """
    from pipeline.data.image_files import ImageFiles

    root = _root(images)
    if local_folder(root) is not None:
        files = local_files(root)
        return {split: ImageFiles((files[split],), own=True) for split in SPLITS}
    names = remote_files(root)
    return {
        split: _remote_images(context, root, names[split], images, chosen[split])
        for split in SPLITS
    }


def _remote_annotations(context: StageContext, root: str, name: str) -> Path:
    """Return an archive of the annotation files below `root`, whether packed or loose."""
    from pipeline.data.coco_files import JSON_LIMITS, is_document
    from pipeline.data.downloads import fetch_below, fetch_whole

    if is_archive(name):
        return fetch_whole(context, root, name, {})

    def documents(folder: "Archive") -> list[str]:
        return [each for each in folder.names() if is_document(each)]

    files = fetch_below(context, root, name, JSON_LIMITS, documents)
    for member, reason in files.faults.items():
        raise StorageError(f"annotations: {reason}", f"repair or remove {name}/{member}")
    if not files.paths:
        raise PipelineError(f"{redact(root)}/{name} has no .json", "put COCO's annotations there")
    return files.paths[0]


def _remote_images(
    context: StageContext,
    root: str,
    name: str,
    images: ImagesPart,
    records: Sequence[Mapping[str, Any]],
) -> "ImageFiles":
    from pipeline.data.downloads import fetch_below, fetch_some_of
    from pipeline.data.image_files import ImageFinder, image_limits

    if is_archive(name):
        return fetch_some_of(context, root, name, {}, images, records)

    def chosen(folder: "Archive") -> set[str]:
        return ImageFinder(folder).find_all(record["file_name"] for record in records)

    return fetch_below(context, root, name, image_limits(images.max_bytes), chosen)


def _root(images: ImagesPart) -> str:
    assert isinstance(images.source, FolderImages)  # this module reads no other source
    return images.source.root
