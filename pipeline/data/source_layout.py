"""Where the parts of a dataset in COCO's layout are, and whether they changed.

`plan` asks this every time, so nothing heavy is imported here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.errors import PipelineError
from storage.errors import MissingError, StorageError, redact

SPLITS = ("train2017", "val2017")
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
Chosen = Mapping[str, Sequence[Mapping[str, Any]]]  # image records by origin
ANNOTATIONS = "annotations/annotations_trainval2017.zip"

# Where each part may be below a root, without its suffix; the published layout first.
_NAMES = {
    **{split: (f"zips/{split}", split) for split in SPLITS},
    "annotations": (
        "annotations/annotations_trainval2017",
        "annotations_trainval2017",
        "annotations",
    ),
}


def local_folder(root: str) -> Path | None:
    """Return the folder that a path or a `file://` URL names, None for a root elsewhere."""
    if root.startswith("file:"):
        path = Path(root.removeprefix("file:").removeprefix("//"))
        # Taken literally if it exists; Path.as_uri() writes %20 for a space.
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
    return {part: name for part, (name, _) in remote_parts(root).items()}


def remote_parts(root: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Return path and state of each part; in the published layout this is one request each."""
    return {part: _remote_one_of(root, part, names) for part, names in _NAMES.items()}


def _remote_one_of(root: str, part: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    from storage.fetch.web import is_http

    # HTTP cannot list a folder.
    folders = () if is_http(root) else reversed(names)
    for name in (*(f"{name}{suffix}" for name in names for suffix in SUFFIXES), *folders):
        try:
            return name, state_of(f"{root.rstrip('/')}/{name}")
        except MissingError:
            continue
    raise StorageError(
        f"{redact(root)} has no archive {names[0]}.zip",
        f"COCO's layout needs {' or '.join(names)} there, as {', '.join(SUFFIXES)}; "
        "or as a folder, except over HTTP",
    )


def _one_of(root: Path, part: str, names: Sequence[str]) -> Path:
    """Return the first archive, else the first folder, with one of the names."""
    candidates = [root / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    candidates += [root / name for name in reversed(names)]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise StorageError(
        f"{root} has no {part}", f"COCO's layout needs {part}/ or an archive {part}.zip there"
    )


def state_of(url: str) -> dict[str, str]:
    """Return what identifies a file's or folder's version; see `storage.fetch.remote.probe`."""
    from storage.fetch.transfer import probe  # imports every way to fetch something

    return probe(url)


def above_and_name(url: str) -> tuple[str, str]:
    """Return the parent of a file or folder, and its name, "" for a whole bucket."""
    above, _, name = url.rstrip("/").rpartition("/")
    return (url.rstrip("/"), "") if above.endswith(":/") else (above, name)


def is_archive(name: str) -> bool:
    """Whether a part is one file, not a folder of many."""
    return name.endswith(SUFFIXES)


def is_bare(path: str) -> bool:
    """Whether a path is a local one, without a scheme."""
    return "://" not in path
