"""Where the parts of a dataset lie, and whether they changed; `plan` asks this on every look.

So nothing heavy is imported here: reading and fetching are in `pipeline.data.sources`.
"""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from pipeline.engine.stage import SourceState
from pipeline.errors import PipelineError
from pipeline.hub.snapshots import HUB, Repository, hub_state, parse_address
from pipeline.recipe.parts import (
    FileConversations,
    FolderImages,
    HubConversations,
    LcsImages,
)
from pipeline.recipe.recipe import Recipe
from storage.errors import MissingError, StorageError, redact

SPLITS = ("train2017", "val2017")
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
ANNOTATIONS = "annotations/annotations_trainval2017.zip"

# Where each part may lie below a root, without its suffix; the place of the published ones first.
_NAMES = {
    **{split: (f"zips/{split}", split) for split in SPLITS},
    "annotations": (
        "annotations/annotations_trainval2017",
        "annotations_trainval2017",
        "annotations",
    ),
}

# Checksum and bytes as published for cocodataset.org; the archives have not changed since.
COCO_2017 = {
    "zips/train2017.zip": ("md5:cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
    "zips/val2017.zip": ("md5:442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
    ANNOTATIONS: ("md5:f4bbac642086de4f52a3fdda2de5fa2c", 252_907_541),
}


def probe_images(recipe: Recipe) -> SourceState:
    """Return the state of a local or remote dataset, so that a changed one re-runs the stage."""
    match recipe.images.source:
        case FolderImages(root=root) if local_folder(root) is None:
            return dict(_remote_parts(root).values())
        case FolderImages(root=root):
            return {name: _state(str(path)) for name, path in sorted(local_files(root).items())}
        case LcsImages(repository=name, revision=revision):
            return hub_state("images", Repository(name, revision, "dataset"))
    return {}  # rendered images follow from the recipe, published archives from their checksums


def probe_conversations(recipe: Recipe) -> SourceState:
    """Return the state of a conversation file that bears no checksum of its own."""
    match recipe.conversations.source:
        case HubConversations(repository=name, revision=revision):
            return hub_state("conversations", Repository(name, revision, "dataset"))
        case FileConversations(path=path, sha256=None) if path.startswith(HUB):
            return hub_state("conversations", parse_address(path, "main")[0])
        case FileConversations(path=path, sha256=None):
            return {
                "conversations": _state(str(Path(path).expanduser()) if is_bare(path) else path)
            }
    return {}


def local_folder(root: str) -> Path | None:
    """Return the folder that a path or a `file://` URL names, None for a root elsewhere."""
    if root.startswith("file:"):
        path = Path(root.removeprefix("file:").removeprefix("//"))
        # Taken as it is written; Path.as_uri() writes %20 for a blank.
        return path if path.exists() else Path(unquote(str(path)))
    return Path(root).expanduser() if is_bare(root) else None


def local_files(root: str) -> dict[str, Path]:
    """Return folder or archive of the images by split, and of the annotations."""
    folder = local_folder(root)
    if folder is None or not folder.is_dir():
        raise PipelineError(
            f"images.source.root: no such folder: {folder or root}",
            "give the folder that holds annotations/, train2017/ and val2017/",
        )
    return {part: _one_of(folder, part, names) for part, names in _NAMES.items()}


def remote_files(root: str) -> dict[str, str]:
    """Return the path below `root` of each split's archive or folder, and of the annotations.

    Raises:
        StorageError: One is not there, or the place cannot be reached.
    """
    return {part: name for part, (name, _) in _remote_parts(root).items()}


def _remote_parts(root: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Return path and state of each part; where all lies as usual, that is one look at each."""
    return {part: _remote_one_of(root, part, names) for part, names in _NAMES.items()}


def _remote_one_of(root: str, part: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    from storage.fetch.web import is_http

    # Nobody lists the files behind HTTP.
    folders = () if is_http(root) else reversed(names)
    for name in (*(f"{name}{suffix}" for name in names for suffix in SUFFIXES), *folders):
        try:
            return name, _state(f"{root.rstrip('/')}/{name}")
        except MissingError:
            continue
    raise StorageError(
        f"{redact(root)} has no archive {names[0]}.zip",
        f"COCO's layout needs {' or '.join(names)} there, as {', '.join(SUFFIXES)}; "
        "or as a folder, but behind HTTP",
    )


def _one_of(root: Path, part: str, names: Sequence[str]) -> Path:
    """Return the first archive, else the first folder, that bears one of the names."""
    candidates = [root / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    candidates += [root / name for name in reversed(names)]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise StorageError(
        f"{root} has no {part}", f"COCO's layout needs {part}/ or an archive {part}.zip there"
    )


def _state(url: str) -> dict[str, str]:
    from storage.fetch.transfer import probe  # imports every way to fetch something

    return probe(url)


def is_archive(name: str) -> bool:
    """Whether a part is one file, not a folder of many."""
    return name.endswith(SUFFIXES)


def is_bare(path: str) -> bool:
    """Whether a path is a local one, without a scheme."""
    return "://" not in path
