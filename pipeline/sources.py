"""Where a COCO-format dataset lies, and how its archives come to this machine.

All three kinds of source end as the same four archives: the pictures of train2017 and val2017 and
their annotations. The demo's are rendered first and then fetched like any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.recipe import Recipe
from pipeline.recipe_parts import (
    Coco2017Images,
    DemoImages,
    FileConversations,
    FolderImages,
    ImagesPart,
)
from pipeline.stage import SourceState, StageContext
from storage.errors import StorageError

SPLITS = ("train2017", "val2017")
SUFFIXES = ("", ".zip", ".tar", ".tar.gz", ".tgz")

# Published at cocodataset.org; the archives have not changed since 2017.
COCO_2017 = {
    "zips/train2017.zip": ("md5:cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
    "zips/val2017.zip": ("md5:442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
    "annotations/annotations_trainval2017.zip": (
        "md5:f4bbac642086de4f52a3fdda2de5fa2c",
        252_907_541,
    ),
}


@dataclass(frozen=True)
class CocoFiles:
    """Local folders or archives of one COCO-format dataset.

    Attributes:
        images: Folder or archive of the pictures, by origin (`train2017`, `val2017`).
        annotations: Folder or archive of the JSON files.
    """

    images: Mapping[str, Path]
    annotations: Path


def locate(context: StageContext, images: ImagesPart, seed: int) -> CocoFiles:
    """Return the dataset's local files, rendering or downloading them where needed.

    Raises:
        PipelineError: A folder lacks a part of COCO's layout.
        StorageError: A download fails for good.
    """
    match images.source:
        case DemoImages(train=train, test=test):
            from pipeline.rendering import render_coco  # numpy and Pillow: `plan` needs neither

            rendered = context.scratch / "rendered"
            with context.report.track("render pictures", train + test) as tick:
                render_coco(rendered, seed=seed, train_images=train, val_images=test, advance=tick)
            return _fetch(context, rendered.resolve().as_uri(), {})
        case Coco2017Images(root=root):
            return _fetch(context, root, COCO_2017)
        case FolderImages(root=root) if "://" in root:
            return _fetch(context, root, {})
        case FolderImages(root=root):
            return _look(Path(root).expanduser())
    raise PipelineError(f"unknown image source {images.source!r}")


def probe_images(recipe: Recipe) -> SourceState:
    """Return the state of a local or remote dataset, so that a changed one re-runs the stage."""
    match recipe.images.source:
        case FolderImages(root=root) if "://" in root:
            return {name: _state(f"{root.rstrip('/')}/{name}") for name in COCO_2017}
        case FolderImages(root=root):
            files = _look(Path(root).expanduser())
            named = {**files.images, "annotations": files.annotations}
            return {name: _state(str(path)) for name, path in sorted(named.items())}
    return {}  # rendered pictures follow from the recipe, published archives from their checksums


def probe_conversations(recipe: Recipe) -> SourceState:
    """Return the state of a conversation file that bears no checksum of its own."""
    match recipe.conversations.source:
        case FileConversations(path=path, sha256=None):
            return {"conversations": _state(str(Path(path).expanduser()) if _bare(path) else path)}
    return {}


def _fetch(context: StageContext, root: str, known: Mapping[str, tuple[str, int]]) -> CocoFiles:
    from storage.transfer import download

    paths = {}
    for name in COCO_2017:
        checksum, size = known.get(name, (None, None))
        target = context.scratch / "downloads" / name
        with context.report.track(f"fetch {name}", size) as tick:
            paths[name] = download(
                f"{root.rstrip('/')}/{name}", target, checksum=checksum, size=size, advance=tick
            )
    return CocoFiles(
        images={split: paths[f"zips/{split}.zip"] for split in SPLITS},
        annotations=paths["annotations/annotations_trainval2017.zip"],
    )


def _look(root: Path) -> CocoFiles:
    if not root.is_dir():
        raise PipelineError(
            f"images.source.root: {root} is no folder",
            "give the folder that holds annotations/, train2017/ and val2017/",
        )
    return CocoFiles(
        images={split: _one_of(root, split, f"zips/{split}") for split in SPLITS},
        annotations=_one_of(
            root, "annotations", "annotations_trainval2017", "annotations/annotations_trainval2017"
        ),
    )


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
