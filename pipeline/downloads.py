"""How files below a root URL come to this machine: whole, in part, or one by one.

Over HTTP only the chosen pictures are moved, out of the remote archive or by their own addresses.
Where that saves nothing, or the server gives whole files only, the archive comes whole.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.picture_files import PictureFinder, Pictures, picture_limits
from pipeline.recipe_parts import ImagesPart
from pipeline.stage import StageContext
from storage.errors import NoRangeError, StorageError

# Above this share of an archive's bytes the whole one is fetched, because its checksum is known.
_MOST = 0.9

Known = Mapping[str, tuple[str, int]]


def fetch_whole(context: StageContext, root: str, name: str, known: Known) -> Path:
    """Return the local copy of one file below `root`.

    Args:
        context: The stage's folders.
        root: Any fsspec URL.
        name: Path below it.
        known: Checksum and bytes of published files, by name.

    Raises:
        StorageError: It cannot be fetched, or is another file than the known one.
    """
    from storage.transfer import download

    checksum, size = known.get(name, (None, None))
    target = context.scratch / "downloads" / name
    with context.report.track(f"fetch {name}", size) as tick:
        return download(
            f"{root.rstrip('/')}/{name}", target, checksum=checksum, size=size, advance=tick
        )


def fetch_some_of(
    context: StageContext,
    root: str,
    name: str,
    known: Known,
    images: ImagesPart,
    records: Sequence[Mapping[str, Any]],
) -> Pictures:
    """Return the chosen members of a zip below `root`, or all of it where that is better.

    Args:
        context: The stage's folders.
        root: Any fsspec URL; members can be chosen over HTTP.
        name: Path of the zip below it.
        known: Checksum and bytes of published files, by name.
        images: The recipe's part, for its limits.
        records: Image records with `file_name`.

    Raises:
        StorageError: It cannot be fetched, or is another file than the known one.
    """
    from storage.web import is_http

    if is_http(root):
        url, (_, size) = f"{root.rstrip('/')}/{name}", known.get(name, ("", None))
        found = fetch_some(context, url, name, images, records, size)
        if found is not None:
            return found
    return Pictures(fetch_whole(context, root, name, known))


def fetch_some(
    context: StageContext,
    url: str,
    name: str,
    images: ImagesPart,
    records: Sequence[Mapping[str, Any]],
    size: int | None = None,
) -> Pictures | None:
    """Return the members of a zip that the records name, None where it should come whole.

    A member is checked against the zip's own CRC-32; the zip's checksum needs the whole of it.

    Raises:
        StorageError: It cannot be fetched, or does not have `size` bytes.
    """
    from storage.remote_zip import RemoteZip
    from storage.retries import Patience
    from storage.subset import fetch_members

    patience, target = Patience(), context.scratch / "downloads" / f"{name}.members.tar"
    try:
        archive = RemoteZip(url, picture_limits(images.max_bytes), patience)
    except NoRangeError as error:
        context.report.say(f"{error.args[0]}: the whole archive is fetched")
        return None
    if size not in {None, archive.size_bytes}:
        raise StorageError(
            f"{archive.title} has {archive.size_bytes} bytes, expected {size}", "Check the address"
        )
    names = PictureFinder(archive).find_all([record["file_name"] for record in records])
    useful = sum(map(archive.packed, names))
    if useful > _MOST * archive.size_bytes:
        return None
    with context.report.track(f"fetch {len(names)} pictures of {name}", useful) as tick:
        faults = fetch_members(archive, names, target, advance=tick, patience=patience)
    return Pictures(target, archive.refused, faults)


def fetch_by_address(
    context: StageContext, name: str, images: ImagesPart, records: Sequence[Mapping[str, Any]]
) -> Pictures:
    """Return the chosen pictures, each fetched from the `coco_url` of its record.

    Raises:
        StorageError: The network stays away; a picture that is not there is a fault.
    """
    from storage.names import name_fault, normal
    from storage.retries import Patience
    from storage.subset import fetch_files

    urls = {
        normal(record["file_name"]): str(record.get("coco_url", ""))
        for record in records
        if not name_fault(record["file_name"])
    }
    target = context.scratch / "downloads" / f"{name}.addresses.tar"
    with context.report.track(f"fetch pictures of {name} one by one", len(urls)) as tick:
        faults = fetch_files(
            urls, target, largest=images.max_bytes, advance=tick, patience=Patience()
        )
    return Pictures(target, faults=faults, fault="not at its address")
