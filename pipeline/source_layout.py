"""Where the parts of a dataset lie, and whether they changed; `plan` asks this on every look.

So nothing heavy is imported here: reading and fetching are in `pipeline.sources`.
"""

from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.recipe import Recipe
from pipeline.recipe_parts import FileConversations, FolderImages
from pipeline.stage import SourceState
from storage.errors import StorageError

SPLITS = ("train2017", "val2017")
SUFFIXES = ("", ".zip", ".tar", ".tar.gz", ".tgz")
ANNOTATIONS = "annotations/annotations_trainval2017.zip"

# Checksum and bytes as published for cocodataset.org; the archives have not changed since.
COCO_2017 = {
    "zips/train2017.zip": ("md5:cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
    "zips/val2017.zip": ("md5:442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
    ANNOTATIONS: ("md5:f4bbac642086de4f52a3fdda2de5fa2c", 252_907_541),
}


def probe_images(recipe: Recipe) -> SourceState:
    """Return the state of a local or remote dataset, so that a changed one re-runs the stage."""
    match recipe.images.source:
        case FolderImages(root=root) if not is_bare(root):
            return {name: _state(f"{root.rstrip('/')}/{name}") for name in COCO_2017}
        case FolderImages(root=root):
            return {name: _state(str(path)) for name, path in sorted(local_files(root).items())}
    return {}  # rendered pictures follow from the recipe, published archives from their checksums


def probe_conversations(recipe: Recipe) -> SourceState:
    """Return the state of a conversation file that bears no checksum of its own."""
    match recipe.conversations.source:
        case FileConversations(path=path, sha256=None):
            return {
                "conversations": _state(str(Path(path).expanduser()) if is_bare(path) else path)
            }
    return {}


def local_files(root: str) -> dict[str, Path]:
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


def is_bare(path: str) -> bool:
    """Whether a path is a local one, without a scheme."""
    return "://" not in path
