"""Guessing a recipe's data fields from a user's files of captioned images."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.datasets.pairs import IMAGES
from pipeline.data.source_layout import SPLITS, SUFFIXES, local_folder
from pipeline.errors import PipelineError
from storage.archives.archive_group import ArchiveGroup
from storage.archives.members import ArchiveLimits
from storage.sql.table_files import table_columns, table_rows, table_suffix

_IMAGE = (
    *("image", "images", "file_name", "filename", "image_path", "image_file", "filepath", "file"),
    *("path", "img", "jpg", "image_url", "url", "link"),
)
_CAPTION = (
    *("caption", "captions", "text", "texts", "sentence", "sentences", "description", "raw"),
    *("txt", "title", "alt_text"),
)
_SPLIT = ("split", "subset", "partition")
_FOLDERS = (".", "images", "image", "imgs", "img", "data", "photos", "train")
_TEST_SHARE = 0.1
_BESIDE = (".txt", ".json")
_SHOWN = 3  # rows
_WHAT = (
    "a table (.csv, .tsv, .jsonl, .parquet), a folder or archive with a.txt or a.json beside "
    "a.jpg, a folder of tar shards, or a folder in COCO's layout"
)


@dataclass(frozen=True)
class Guess:
    """What a path was recognised as.

    Attributes:
        what: In words, with counts.
        changes: The fields of the recipe, by dotted path.
        columns: Names of the columns of `rows`.
        rows: The first rows, for display.
    """

    what: str
    changes: Mapping[str, object]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def guess_data(path: str) -> Guess:
    """Return which format the captioned images at a local path have, and the recipe fields for it.

    Raises:
        PipelineError: No source reads that format, or a table's columns are not recognised.
        StorageError: It cannot be read.
    """
    place = local_folder(path)
    if place is None:
        raise PipelineError(
            f"--data reads local files only, and {path} is not local",
            "give images.source with its fields (phivision recipe names them)",
        )
    if not place.exists():
        raise PipelineError(f"--data: no such file or folder: {path}", "check the path")
    if place.is_file() and table_suffix(place.name):
        return _of_table(path, place)
    if place.is_dir() and (layout := _layout_of_coco(path, place)):
        return layout
    if place.is_dir() and (table := _metadata(place)):
        return _of_table(str(table), table)
    if place.is_dir() or place.name.endswith(SUFFIXES):
        return _of_pairs(path, place)
    raise PipelineError(f"--data: {path} has no known dataset format", f"give {_WHAT}")


def _fields(source: Mapping[str, object], path: str) -> dict[str, object]:
    name = re.sub(r"[^\w.-]+", "-", Path(path).resolve().stem).strip("-.") or "own"
    return {
        **{f"images.source.{field}": value for field, value in source.items()},
        "conversations.source.kind": "none",
        "finetune.caption_share": 1.0,
        "publish.metric": "cider_d",
        "publish.name": f"phivision-{name}",
    }


def _layout_of_coco(path: str, folder: Path) -> Guess | None:
    names = {entry.name.partition(".")[0] for entry in folder.iterdir()}
    if not (names >= {*SPLITS} or names >= {"zips", "annotations"}):
        return None
    fields = _fields({"kind": "folder", "root": path}, path)
    return Guess("images in COCO's layout", fields, (), ())


def _metadata(folder: Path) -> Path | None:
    """Return the one table of a folder, such as the metadata.csv of a Hugging Face image folder."""
    files = (path for path in folder.iterdir() if table_suffix(path.name))
    tables = [path for path in files if not _is_sample(path, folder)]
    return tables[0] if len(tables) == 1 else None


def _is_sample(path: Path, folder: Path) -> bool:
    """Whether a file is the JSON beside one image, not a table of all images."""
    return any((folder / f"{path.stem}{suffix}").exists() for suffix in IMAGES)


def _of_table(path: str, place: Path) -> Guess:
    columns = table_columns([place])
    image = _named(columns, _IMAGE) or next(
        (name for name, kind in columns.items() if "BLOB" in kind), None
    )
    caption = _named(columns, _CAPTION)
    if image is None or caption is None:
        what = "an image" if image is None else "a caption"
        raise PipelineError(
            f"--data: no column of {path} is named like {what}; it has {', '.join(columns)}",
            "set images.source.kind=table with its fields, or rename the column",
        )
    split = _named(columns, _SPLIT) or ""
    shown = [*dict.fromkeys((image, caption, *([split] if split else [])))]
    count, first = 0, []
    for row in table_rows([place], shown):
        count += 1
        if len(first) < _SHOWN:
            first.append(row)
    inside = "BLOB" in columns[image]
    root = "" if inside else _images_of(place.parent, [row[image] for row in first])
    source = {
        "kind": "table",
        "path": path,
        "root": root,
        "image": image,
        "caption": caption,
        "split": split,
        "test_share": _TEST_SHARE,
    }
    rows = [[_short(row[name]) for name in shown] for row in first]
    what = f"a table of {count:,} rows with the columns {', '.join(columns)}"
    return Guess(what, _fields(source, path), shown, rows)


def _images_of(folder: Path, names: Sequence[Any]) -> str:
    """Return the folder or archive of a table's images, "" where rows have addresses."""
    first = next((name for name in names if isinstance(name, str)), "")
    if first.startswith(("http://", "https://")):
        return ""
    if first.startswith("/"):
        return str(Path(first).parent)
    for name in _FOLDERS:
        if first and (folder / name / first).is_file():
            return name
    archives = sorted(p.name for p in folder.iterdir() if p.name.endswith(SUFFIXES))
    if len(archives) == 1:
        return archives[0]
    raise PipelineError(
        f"--data: {first!r}, the image of the first row, was not found beside the table",
        "set images.source.kind=table with its fields; images.source.root is the images' folder",
    )


def _of_pairs(path: str, place: Path) -> Guess:
    inside = sorted(place.iterdir()) if place.is_dir() else []
    shards = tuple(file for file in inside if file.name.endswith(SUFFIXES))
    limits = ArchiveLimits(members=1_000_000)
    with ArchiveGroup(shards or (place,), limits, own=True) as archive:
        names = archive.names()
        known = {name.rpartition(".")[0]: name for name in names if name.endswith(_BESIDE)}
        images = [name for name in names if Path(name).suffix.lower() in IMAGES]
        paired = [name for name in images if name.rpartition(".")[0] in known]
        if not paired:
            raise PipelineError(
                f"--data: {path} has {len(images)} images and no captions beside them",
                f"give {_WHAT}",
            )
        rows = []
        for name in paired[:_SHOWN]:
            beside = archive.read(known[name.rpartition(".")[0]])
            rows.append([name, _short(beside.decode("utf-8", "replace"))])
    fields = _fields(
        {"kind": "pairs", "root": path, "captions": "beside", "test_share": _TEST_SHARE}, path
    )
    what = f"{len(paired):,} images with a caption file"
    if shards:
        what += f" in {len(shards)} shards"
    return Guess(what, fields, ("image", "caption"), rows)


def _named(columns: Mapping[str, str], names: Sequence[str]) -> str | None:
    by_lower = {column.lower(): column for column in columns}
    return next((by_lower[name] for name in names if name in by_lower), None)


def _short(value: object) -> str:
    if isinstance(value, Mapping | bytes):
        data = value if isinstance(value, bytes) else value.get("bytes") or b""
        return f"<{len(data):,} bytes>"
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"
