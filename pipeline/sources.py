"""Where a dataset lies, and how its annotations and the chosen pictures come to this machine.

Every source ends as annotations by origin and one folder or archive of pictures for each. The
demo's are rendered first and then fetched like any other.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.annotations import Annotations, read_coco, read_image_ids
from pipeline.downloads import fetch_by_address, fetch_some, fetch_some_of, fetch_whole
from pipeline.errors import PipelineError
from pipeline.hub import hub_file, hub_url
from pipeline.lcs import TEST, TRAIN, read_lcs
from pipeline.picture_files import Pictures
from pipeline.recipe import Recipe
from pipeline.recipe_parts import (
    Coco2017Images,
    DemoImages,
    FileConversations,
    FolderImages,
    ImagesPart,
    LcsImages,
)
from pipeline.schemas import drop
from pipeline.stage import SourceState, StageContext
from storage.errors import StorageError

SPLITS = ("train2017", "val2017")
TEST_ORIGINS = frozenset({SPLITS[1], TEST})
SUFFIXES = ("", ".zip", ".tar", ".tar.gz", ".tgz")
ANNOTATIONS = "annotations/annotations_trainval2017.zip"
ANNOTATIONS_2014 = "annotations/annotations_trainval2014.zip"

# Checksum and bytes as published for cocodataset.org; the archives have not changed since.
COCO_2017 = {
    "zips/train2017.zip": ("md5:cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
    "zips/val2017.zip": ("md5:442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
    ANNOTATIONS: ("md5:f4bbac642086de4f52a3fdda2de5fa2c", 252_907_541),
}
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
        case LcsImages(repository=repository, annotations=name, revision=revision):
            path, share = hub_file(repository, name, revision), images.source.test_share
            return read_lcs(path, f"{repository}/{name}", share, seed, drops)
        case DemoImages(train=train, test=test):
            from pipeline.rendering import render_coco  # numpy and Pillow: `plan` needs neither

            with context.report.track("render pictures", train + test) as tick:
                target = _rendered(context)
                render_coco(target, seed=seed, train_images=train, val_images=test, advance=tick)
            path = fetch_whole(context, _rendered(context).as_uri(), ANNOTATIONS, {})
        case Coco2017Images(root=root):
            path = fetch_whole(context, root, ANNOTATIONS, COCO_2017)
        case FolderImages(root=root) if "://" in root:
            path = fetch_whole(context, root, ANNOTATIONS, {})
        case FolderImages(root=root):
            path = _local_files(root)["annotations"]
    found = {split: read_coco(path, split, drops) for split in SPLITS}
    if isinstance(images.source, Coco2017Images) and images.source.exclude_val2014:
        return {**found, SPLITS[0]: _without_val2014(context, root, found[SPLITS[0]], drops)}
    return found


def fetch_pictures(
    context: StageContext, images: ImagesPart, chosen: Chosen
) -> Mapping[str, Pictures]:
    """Return where the chosen pictures of each origin are, fetching them where needed.

    Args:
        context: The stage's folders.
        images: The recipe's part.
        chosen: Image records by origin.

    Raises:
        StorageError: A download fails for good, or a folder lacks a part of the layout.
    """
    source = images.source
    if isinstance(source, LcsImages):
        pictures = _lcs_pictures(context, source, images, [*chosen[TRAIN], *chosen[TEST]])
        return {TRAIN: pictures, TEST: pictures}
    if isinstance(source, FolderImages) and _bare(source.root):
        files = _local_files(source.root)
        return {split: Pictures(files[split]) for split in SPLITS}
    found = {}
    for split in SPLITS:
        name = f"zips/{split}.zip"
        match source:
            case DemoImages():
                found[split] = Pictures(fetch_whole(context, _rendered(context).as_uri(), name, {}))
            case Coco2017Images(root=root, fetch="whole"):
                found[split] = Pictures(fetch_whole(context, root, name, COCO_2017))
            case Coco2017Images(fetch="addresses"):
                found[split] = fetch_by_address(context, name, images, chosen[split])
            case Coco2017Images(root=root):
                found[split] = fetch_some_of(context, root, name, COCO_2017, images, chosen[split])
            case FolderImages(root=root):
                found[split] = fetch_some_of(context, root, name, {}, images, chosen[split])
    return found


def probe_images(recipe: Recipe) -> SourceState:
    """Return the state of a local or remote dataset, so that a changed one re-runs the stage."""
    match recipe.images.source:
        case FolderImages(root=root) if not _bare(root):
            return {name: _state(f"{root.rstrip('/')}/{name}") for name in COCO_2017}
        case FolderImages(root=root):
            return {name: _state(str(path)) for name, path in sorted(_local_files(root).items())}
    return {}  # rendered pictures follow from the recipe, published archives from their checksums


def probe_conversations(recipe: Recipe) -> SourceState:
    """Return the state of a conversation file that bears no checksum of its own."""
    match recipe.conversations.source:
        case FileConversations(path=path, sha256=None):
            return {"conversations": _state(str(Path(path).expanduser()) if _bare(path) else path)}
    return {}


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
    return Annotations(kept, found.captions, found.objects, found.categories)


def _lcs_pictures(
    context: StageContext,
    source: LcsImages,
    images: ImagesPart,
    records: Sequence[Mapping[str, Any]],
) -> Pictures:
    url = hub_url(source.repository, source.pictures, source.revision)
    found = fetch_some(context, url, source.pictures, images, records) if url else None
    return found or Pictures(hub_file(source.repository, source.pictures, source.revision))


def _rendered(context: StageContext) -> Path:
    return (context.scratch / "rendered").resolve()


def _local_files(root: str) -> dict[str, Path]:
    """Return folder or archive of the pictures by split, and of the annotations."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise PipelineError(
            f"images.source.root: {folder} is no folder",
            "give the folder that holds annotations/, train2017/ and val2017/",
        )
    named = ("annotations", "annotations_trainval2017", "annotations/annotations_trainval2017")
    files = {split: _one_of(folder, split, f"zips/{split}") for split in SPLITS}
    return {**files, "annotations": _one_of(folder, *named)}


def _one_of(root: Path, *names: str) -> Path:
    """Return the first archive, else the first folder, that bears one of the names."""
    candidates = [root / f"{name}{suffix}" for name in reversed(names) for suffix in SUFFIXES[1:]]
    candidates += [root / name for name in names]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise StorageError(
        f"{root} has no {names[0]}",
        f"COCO's layout needs {names[0]}/ or an archive {names[0]}.zip there",
    )


def _state(url: str) -> dict[str, str]:
    from storage.transfer import probe  # imports every way to fetch something

    return probe(url)


def _bare(path: str) -> bool:
    return "://" not in path
