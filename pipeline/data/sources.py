"""Where a dataset lies, and how its annotations and the chosen images come to this machine.

Every source ends as annotations by origin and one folder or archive of images for each. The
demo's are rendered first and then fetched like any other.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.annotations import Annotations, read_coco, read_image_ids
from pipeline.data.coco_files import JSON_LIMITS, is_document
from pipeline.data.datasets.lcs558k import TEST, TRAIN, read_lcs
from pipeline.data.downloads import (
    fetch_below,
    fetch_by_address,
    fetch_some,
    fetch_some_of,
    fetch_whole,
)
from pipeline.data.image_files import ImageFiles, ImageFinder, image_limits
from pipeline.data.schemas import drop
from pipeline.data.source_layout import (
    ANNOTATIONS,
    COCO_2017,
    SPLITS,
    is_archive,
    local_files,
    local_folder,
    remote_files,
)
from pipeline.engine.stage import StageContext
from pipeline.errors import PipelineError
from pipeline.hub.snapshots import Repository, at_commit, hub_url, repository_file
from pipeline.recipe.parts import (
    Coco2017Images,
    DemoImages,
    FolderImages,
    ImagesPart,
    LcsImages,
)
from storage.archives.members import Archive
from storage.errors import StorageError, redact

TEST_ORIGINS = frozenset({SPLITS[1], TEST})
ANNOTATIONS_2014 = "annotations/annotations_trainval2014.zip"

COCO_2014 = {ANNOTATIONS_2014: ("md5:0a379cfc70b0e71301e0f377548639bd", 252_872_794)}

Chosen = Mapping[str, Sequence[Mapping[str, Any]]]


def read_annotations(
    context: StageContext, images: ImagesPart, seed: int, drops: list[dict[str, Any]]
) -> dict[str, Annotations]:
    """Return the annotations of the training origin and of the test origin, in this order.

    Raises:
        PipelineError: A part of the layout is missing, or a file is not in its format.
        StorageError: A download fails for good.
    """
    match images.source:
        case LcsImages(repository=repository, annotations=name):
            path, share = _lcs_file(context, images.source, name), images.source.test_share
            return read_lcs(path, f"{repository}/{name}", share, seed, drops)
        case DemoImages(train=train, test=test):
            from pipeline.data.datasets.shapes.rendering import (
                render_coco,  # numpy and Pillow: `plan` needs neither
            )

            with context.report.track("render images", train + test) as tick:
                target = _rendered(context)
                render_coco(target, seed=seed, train_images=train, val_images=test, advance=tick)
            path = fetch_whole(context, _rendered(context).as_uri(), ANNOTATIONS, {})
        case Coco2017Images(root=root):
            path = fetch_whole(context, root, ANNOTATIONS, COCO_2017)
        case FolderImages(root=root) if local_folder(root) is None:
            path = _remote_annotations(context, root, remote_files(root)["annotations"])
        case FolderImages(root=root):
            path = local_files(root)["annotations"]
    own = _is_own(images)
    found = {split: read_coco(path, split, drops, own=own) for split in SPLITS}
    if isinstance(images.source, Coco2017Images) and images.source.exclude_val2014:
        return {**found, SPLITS[0]: _without_val2014(context, root, found[SPLITS[0]], drops)}
    return found


def fetch_image_files(
    context: StageContext, images: ImagesPart, chosen: Chosen
) -> Mapping[str, ImageFiles]:
    """Return where the chosen images of each origin are, fetching them where needed.

    Args:
        context: The stage's folders.
        images: The recipe's part.
        chosen: Image records by origin.

    Raises:
        StorageError: A download fails for good, or a folder lacks a part of the layout.
    """
    source = images.source
    if isinstance(source, LcsImages):
        files = _lcs_image_files(context, source, images, [*chosen[TRAIN], *chosen[TEST]])
        return {TRAIN: files, TEST: files}
    if isinstance(source, FolderImages) and _is_own(images):
        files = local_files(source.root)
        return {split: ImageFiles((files[split],), own=True) for split in SPLITS}
    names = {split: f"zips/{split}.zip" for split in SPLITS}
    if isinstance(source, FolderImages):
        names = remote_files(source.root)
    return {
        split: _of_split(context, source, images, names[split], chosen[split]) for split in SPLITS
    }


def _of_split(
    context: StageContext,
    source: DemoImages | Coco2017Images | FolderImages,
    images: ImagesPart,
    name: str,
    records: Sequence[Mapping[str, Any]],
) -> ImageFiles:
    """Return where the images of one split of COCO's layout are."""
    match source:
        case DemoImages():
            return ImageFiles((fetch_whole(context, _rendered(context).as_uri(), name, {}),))
        case Coco2017Images(root=root, fetch="whole"):
            return ImageFiles((fetch_whole(context, root, name, COCO_2017),))
        case Coco2017Images(fetch="addresses"):
            return fetch_by_address(context, name, images, records)
        case Coco2017Images(root=root):
            return fetch_some_of(context, root, name, COCO_2017, images, records)
        case FolderImages(root=root) if is_archive(name):
            return fetch_some_of(context, root, name, {}, images, records)
        case FolderImages(root=root):
            return _loose_images(context, root, name, images, records)


def _remote_annotations(context: StageContext, root: str, name: str) -> Path:
    """Return an archive of the annotation files that lie below `root`, packed or loose."""
    if is_archive(name):
        return fetch_whole(context, root, name, {})

    def documents(folder: Archive) -> list[str]:
        return [each for each in folder.names() if is_document(each)]

    found = fetch_below(context, root, name, JSON_LIMITS, documents)
    for member, reason in found.faults.items():
        raise StorageError(f"annotations: {reason}", f"mend or remove {name}/{member}")
    if not found.paths:
        raise PipelineError(f"{redact(root)}/{name} has no .json", "give COCO's annotations there")
    return found.paths[0]


def _loose_images(
    context: StageContext,
    root: str,
    name: str,
    images: ImagesPart,
    records: Sequence[Mapping[str, Any]],
) -> ImageFiles:
    def chosen(folder: Archive) -> set[str]:
        return ImageFinder(folder).find_all(record["file_name"] for record in records)

    return fetch_below(context, root, name, image_limits(images.max_bytes), chosen)


def _is_own(images: ImagesPart) -> bool:
    """Whether the dataset is a folder of this machine's user, whose links may lead anywhere."""
    source = images.source
    return isinstance(source, FolderImages) and local_folder(source.root) is not None


def _without_val2014(
    context: StageContext, root: str, found: Annotations, drops: list[dict[str, Any]]
) -> Annotations:
    path = fetch_whole(context, root, ANNOTATIONS_2014, COCO_2014)
    excluded = read_image_ids(path, "captions_val2014.json")
    kept = [record for record in found.images if record["id"] not in excluded]
    drops += [
        drop("images", "image", record["id"], record["file_name"], "in val2014")
        for record in found.images
        if record["id"] in excluded
    ]
    return Annotations(kept, found.captions, found.objects)


def _lcs_image_files(
    context: StageContext,
    source: LcsImages,
    images: ImagesPart,
    records: Sequence[Mapping[str, Any]],
) -> ImageFiles:
    there = _lcs_repository(context, source)
    url = hub_url(source.repository, source.images, there.commit or there.revision)
    found = fetch_some(context, url, source.images, images, records) if url else None
    return found or ImageFiles((_lcs_file(context, source, source.images),))


def _lcs_repository(context: StageContext, source: LcsImages) -> Repository:
    """Return the repository at the commit that the fingerprint holds."""
    repository = Repository(source.repository, source.revision, "dataset")
    return at_commit(repository, "images", context.source)


def _lcs_file(context: StageContext, source: LcsImages, name: str) -> Path:
    return repository_file(_lcs_repository(context, source), name)


def _rendered(context: StageContext) -> Path:
    return (context.scratch / "rendered").resolve()
