"""A table of images and captions: CSV, TSV, JSON lines or Parquet, with the images beside it.

A row names a file or a URL, or holds the image itself, as Parquet of the Hugging Face Hub does.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.data.source_layout import Chosen, above_and_name, is_archive, local_folder, state_of
from pipeline.engine.stage import SourceState, StageContext
from pipeline.errors import PipelineError
from pipeline.hub.snapshots import HUB, at_commit, hub_state, parse_address, repository_file
from pipeline.recipe.data_sources import TableImages
from pipeline.recipe.parts import ImagesPart
from storage.errors import redact

if TYPE_CHECKING:
    from pipeline.data.annotations import Annotations
    from pipeline.data.captioned import Captioned
    from pipeline.data.image_files import ImageFiles

_EMBEDDED = "embedded.zip"


def probe(source: TableImages) -> SourceState:
    """Return the state of the table, and of the images where they are files."""
    if source.path.startswith(HUB):
        return hub_state("table", parse_address(source.path, "main")[0])
    states = {"table": state_of(_local(source.path))}
    root = _root(source)
    if root and (is_archive(root) or not _is_web(root)):
        states["images"] = state_of(_local(root))
    return states


def read(
    context: StageContext, images: ImagesPart, seed: int, drops: list[dict[str, Any]]
) -> dict[str, "Annotations"]:
    """Return the images and captions of the origins `train` and `test`.

    Images that the table itself holds are written to the scratch folder on the way.

    Raises:
        PipelineError: The table has no usable row.
        StorageError: The table cannot be fetched or read, or lacks a column.
    """
    from pipeline.data.captioned import annotations_of

    source = _source(images)
    records = _records(context, source, drops)
    annotations = annotations_of(records, source.test_share, seed, drops)
    if not any(part.images for part in annotations.values()):
        raise PipelineError(
            f"{redact(source.path)} names no image with a caption",
            "images.source.image and images.source.caption say which columns have them",
        )
    return annotations


def fetch(context: StageContext, images: ImagesPart, chosen: Chosen) -> Mapping[str, "ImageFiles"]:
    """Return where the chosen images are: in the table, at their addresses, or below the root.

    Raises:
        StorageError: A download fails for good.
    """
    from pipeline.data.downloads import fetch_by_address
    from pipeline.data.image_files import ImageFiles

    source, embedded = _source(images), context.scratch / _EMBEDDED
    if embedded.is_file():
        return dict.fromkeys(chosen, ImageFiles((embedded,)))
    records = [record for of_origin in chosen.values() for record in of_origin]
    if any(record["coco_url"] for record in records):
        return dict.fromkeys(chosen, fetch_by_address(context, "table", images, records))
    root = _root(source)
    if not root:
        raise PipelineError(
            f"{redact(source.path)} names files, but images.source.root is not set",
            'set it to their folder, "." for the folder of the table',
        )
    folder = local_folder(root)
    if folder is not None:
        return dict.fromkeys(chosen, ImageFiles((folder,), own=True))
    return dict.fromkeys(chosen, _remote(context, root, images, records))


def _remote(
    context: StageContext, root: str, images: ImagesPart, records: list[Mapping[str, Any]]
) -> "ImageFiles":
    from pipeline.data.downloads import fetch_below, fetch_some_of
    from pipeline.data.image_files import ImageFinder, image_limits

    above, name = above_and_name(root)
    if is_archive(name):
        return fetch_some_of(context, above, name, {}, images, records)
    if _is_web(root):
        raise PipelineError(
            f"{redact(root)} is a folder behind HTTP, whose files cannot be listed",
            "give an archive there, or a column with the full URL of each image",
        )
    return fetch_below(
        context,
        above,
        name,
        image_limits(images.max_bytes),
        lambda folder: ImageFinder(folder).find_all(record["file_name"] for record in records),
    )


def _records(
    context: StageContext, source: TableImages, drops: list[dict[str, Any]]
) -> Iterator["Captioned"]:
    import zipfile

    from pipeline.data.captioned import Captioned, texts_of
    from pipeline.data.schemas import drop
    from storage.sql.table_files import table_rows

    path, root = _table(context, source), local_folder(_root(source) or "/")
    columns = [source.image, source.caption, *([source.split] if source.split else [])]
    embedded = context.scratch / _EMBEDDED
    embedded.unlink(missing_ok=True)
    partial, held = embedded.with_suffix(".part"), 0
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for number, row in enumerate(table_rows([path], columns), start=1):
            place, image = f"row {number}", row[source.image]
            name, url, data = _image(image)
            if not name:
                drops.append(drop("images", "image", place, "", "no image", repr(image)[:200]))
                continue
            if name.startswith("/") and root is not None:
                name = name.removeprefix(f"{root.resolve()}/").removeprefix(f"{root}/")
            if data:
                name = f"{number:08d}{PurePosixPath(name).suffix or '.jpg'}"
                archive.writestr(name, data)
                held += 1
            split = str(row[source.split] or "") if source.split else ""
            yield Captioned(place, name, texts_of(row[source.caption]), split, url)
    if held:
        partial.replace(embedded)
    else:
        partial.unlink()


def _image(value: Any) -> tuple[str, str, bytes]:
    """Return name, URL and bytes of the image that a cell names or holds, empty where absent."""
    match value:
        case {"bytes": bytes(data)} if data:
            return str(value.get("path") or "image.jpg"), "", data
        case bytes(data) if data:
            return "image.jpg", "", data
        case str(url) if _is_web(url):
            suffix = PurePosixPath(url.partition("?")[0]).suffix.lower()
            name = hashlib.sha256(url.encode()).hexdigest()[:24]
            return f"{name}{suffix if 1 < len(suffix) < 6 else '.jpg'}", url, b""
        case str(name) if name.strip():
            return name.strip().removeprefix("./"), "", b""
    return "", "", b""


def _table(context: StageContext, source: TableImages) -> Path:
    """Return the table on this machine."""
    from pipeline.data.downloads import fetch_whole

    if source.path.startswith(HUB):
        repository, file = parse_address(source.path, "main")
        return repository_file(at_commit(repository, "table", context.source), file)
    local = local_folder(source.path)
    if local is not None:
        if not local.is_file():
            raise PipelineError(f"images.source.path: no such file: {local}", "check the path")
        return local
    above, name = above_and_name(source.path)
    return fetch_whole(context, above, name, {})


def _root(source: TableImages) -> str:
    """Return where the images are, "" where the recipe does not say."""
    if not source.root or source.root.startswith(("/", "~")) or "://" in source.root:
        return source.root
    above = source.path.rpartition("/")[0] or "."
    return above if source.root == "." else f"{above}/{source.root}"


def _local(path: str) -> str:
    folder = local_folder(path)
    return path if folder is None else str(folder)


def _is_web(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _source(images: ImagesPart) -> TableImages:
    assert isinstance(images.source, TableImages)  # this module reads no other source
    return images.source
