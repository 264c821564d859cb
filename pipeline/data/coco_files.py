"""COCO's annotation files: finding them in a folder or an archive, and reading them.

People keep copies beside their annotations. The file nearest to the top is read. Where two are
equally near, or one is in a folder below that of another, the choice is ambiguous: an error.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.json_stream import ListAt, ListReader, chunks_of, without_first
from pipeline.data.name_forms import folded
from pipeline.data.source_layout import SPLITS
from pipeline.errors import PipelineError
from storage.archives.archives import Archive, ArchiveLimits

JSON_LIMITS = ArchiveLimits(members=64, member_bytes=4 * 2**30, total_bytes=16 * 2**30, ratio=200.0)
_ENDS = ("", ".gz")  # suffixes that may follow a file's name
_LISTS = ("images", "annotations", "categories")

Json = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """An annotation file, whose records are read from the archive each time.

    Attributes:
        archive: The archive, which must be open.
        member: The file in it, None where there is none.
        lists: Where its lists are.
    """

    archive: Archive
    member: str | None
    lists: Mapping[str, ListAt]

    def records(self, name: str) -> Iterator[Any]:
        """Yield the records of one of COCO's lists, none where there is no such list."""
        if self.member is not None and (place := self.lists.get(name)) is not None:
            with self.archive.open(self.member) as file:
                chunks = without_first(chunks_of(file), place.start)
                yield from ListReader(chunks, _DECODER).first_list()


def read_document(archive: Archive, path: Path, name: str, *, required: bool) -> Document:
    """Return an annotation file, read once to the end; without records where there is none.

    Args:
        archive: The folder or archive of the annotations.
        path: Its path, for messages.
        name: Base name of the file, such as ``captions_val2017.json``.
        required: Whether the file must be there.

    Raises:
        PipelineError: It is missing, ambiguous, not JSON, or not COCO's.
    """
    member = _find(archive, path, name)
    if member is None:
        if required:
            raise PipelineError(
                f"{path} holds no {name}{_instead(archive, name)}",
                "COCO's annotation files are needed",
            )
        return Document(archive, None, {})
    with archive.open(member) as file:
        try:
            value = ListReader(chunks_of(file)).outline()
        except (ValueError, RecursionError) as error:
            while file.read(1 << 20):  # a damaged archive says so, at the file's end at the latest
                pass
            raise PipelineError(
                f"{path}: {member} is not valid JSON: {error}", "fetch that file again"
            ) from None
    value = _unwrapped(value)
    lists = {k: value[k] for k in _LISTS if k in value} if isinstance(value, dict) else None
    if lists is None or not all(isinstance(each, ListAt) for each in lists.values()):
        raise PipelineError(
            f"{path}: {member} is JSON but not COCO's format",
            "it must be an object with the lists 'images' and 'annotations'",
        )
    return Document(archive, member, lists)


def is_document(member: str) -> bool:
    """Whether a member may be an annotation file."""
    return member.endswith(tuple(f".json{end}" for end in _ENDS))


def _unwrapped(value: object) -> object:
    """Return COCO's object out of an object whose only field holds it, else the value itself."""
    if isinstance(value, dict) and len(value) == 1:
        inner = next(iter(value.values()))
        if isinstance(inner, dict) and {"images", "annotations"} <= inner.keys():
            return inner
    return value


def _without_outline(record: Json) -> Json:
    """Return an object without its polygons, which are most of an instances file and unused."""
    record.pop("segmentation", None)
    return record


_DECODER = json.JSONDecoder(object_hook=_without_outline)


def _find(archive: Archive, path: Path, name: str) -> str | None:
    """Return the member with a base name, None where there is none.

    Raises:
        PipelineError: Several members could be meant.
    """
    near = _nearest(archive, name)
    if len(near) > 1:
        raise PipelineError(
            f"{path} holds {' and '.join(near)}: which one to use is ambiguous",
            "move all but one elsewhere",
        )
    if not near:
        return None
    for other in _others(archive, name):
        above, own = PurePosixPath(other).parent, PurePosixPath(near[0]).parent
        if above != own and above in own.parents:
            raise PipelineError(
                f"{path} holds {near[0]} in a folder below that of {other}: it looks like a copy",
                "put the annotation files that belong together into one folder",
            )
    return near[0]


def _others(archive: Archive, name: str) -> Iterator[str]:
    for kind in ("captions", "instances"):
        for split in SPLITS:
            if f"{kind}_{split}.json" != name:
                yield from _nearest(archive, f"{kind}_{split}.json")


def _nearest(archive: Archive, name: str) -> list[str]:
    """Return the members of that name nearest to the top; an uncompressed one is preferred."""
    ranked = [
        (member.count("/"), rank, member)
        for member in archive.names()
        for rank, end in enumerate(_ENDS)
        if member.rsplit("/", 1)[-1] == f"{name}{end}"
    ]
    return [member for *rank, member in ranked if rank == list(min(ranked)[:2])]


def _instead(archive: Archive, name: str) -> str:
    """Return in words which similar member there is instead, "" where there is none."""
    for member, reason in archive.refused.items():
        if member.rsplit("/", 1)[-1] == name:
            return f": {member} was refused ({reason})"
    for member in archive.names():
        if folded(member.rsplit("/", 1)[-1]) in {folded(f"{name}{end}") for end in _ENDS}:
            return f"; there is {member}"
    return ""
