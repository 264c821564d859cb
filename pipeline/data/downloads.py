"""Downloads of files below a root URL: whole, in part, or one by one.

Over HTTP only the chosen images are fetched, out of the remote archive or by their own addresses.
Where that saves nothing, or the server does not support ranges, the whole archive is fetched.

Downloads are shared by all recipes of this machine (`storage.fetch.download_cache`), so that one
that wants more images fetches only the difference. Images fetched by address are not shared: their
version is unknown.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.image_files import ImageFiles, ImageFinder, image_limits
from pipeline.engine.stage import StageContext
from pipeline.recipe.parts import ImagesPart
from storage.errors import NoRangeError, StorageError
from storage.filesystem import replace_file

if TYPE_CHECKING:
    from storage.archives.members import ArchiveLimits
    from storage.fetch.remote_folder import RemoteFolder
    from storage.fetch.remote_zip import RemoteZip
    from storage.fetch.retries import Patience

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
        StorageError: It cannot be fetched, or does not match `known`.
    """
    from storage.fetch.transfer import download, probe

    url, (checksum, size) = f"{root.rstrip('/')}/{name}", known.get(name, (None, None))
    noted = _noted(context, name)
    if noted is not None:
        return noted.paths[0]
    folder = _scratch(context)
    if not root.startswith("file:"):  # local files need no cache
        folder = _folder(context, url, {"checksum": checksum} if checksum else probe(url))
    with context.report.track(f"fetch {name}", size) as tick:
        path = download(url, folder / name, checksum=checksum, size=size, advance=tick)
    _note(context, name, ImageFiles((path,)))
    return path


def fetch_some_of(
    context: StageContext,
    root: str,
    name: str,
    known: Known,
    images: ImagesPart,
    records: Sequence[Mapping[str, Any]],
) -> ImageFiles:
    """Return the chosen members of an archive below `root`, or all of it where that is cheaper.

    Args:
        context: The stage's folders.
        root: Any fsspec URL; over HTTP, members of a zip can be chosen.
        name: Path of the archive below it.
        known: Checksum and bytes of published files, by name.
        images: The recipe's part, for its limits.
        records: Image records with `file_name`.

    Raises:
        StorageError: It cannot be fetched, or does not match `known`.
    """
    from storage.fetch.web import is_http

    if is_http(root) and name.endswith(".zip") and _noted(context, name) is None:
        url, (_, size) = f"{root.rstrip('/')}/{name}", known.get(name, ("", None))
        files = fetch_some(context, url, name, images, records, size)
        if files is not None:
            return files
    return ImageFiles((fetch_whole(context, root, name, known),))


def fetch_some(
    context: StageContext,
    url: str,
    name: str,
    images: ImagesPart,
    records: Sequence[Mapping[str, Any]],
    size: int | None = None,
) -> ImageFiles | None:
    """Return the members of a zip that the records name, None where all of it should be fetched.

    Members that another recipe fetched are not fetched again. A member is checked against the
    zip's own CRC-32; the zip's checksum would need all of it.

    Raises:
        StorageError: It cannot be fetched, or does not have `size` bytes.
    """
    from storage.fetch.download_cache import gather
    from storage.fetch.retries import Patience
    from storage.fetch.subset import fetch_members

    noted, patience = _noted(context, f"{name}.members"), Patience()
    if noted is not None:
        return noted
    archive = _opened(context, url, images, size, patience)
    if archive is None:
        return None
    names = ImageFinder(archive).find_all(record["file_name"] for record in records)
    useful = sum(map(archive.packed, names))
    if useful > _MOST * archive.size_bytes:
        return None
    wanted = {name: (archive.size(name), archive.crc(name)) for name in names}
    folder = _folder(context, url, archive.version) / f"{name}.members"
    with context.report.track(f"fetch {len(names)} images of {name}", useful) as tick:

        def here(known: Collection[str]) -> None:
            tick(sum(map(archive.packed, known)))

        def fetch(missing: Collection[str], target: Path) -> Mapping[str, str]:
            return fetch_members(archive, missing, target, advance=tick, patience=patience)

        paths, faults = gather(folder, wanted, here, fetch)
    return _note(
        context, f"{name}.members", ImageFiles(tuple(paths), refused=archive.refused, faults=faults)
    )


def _opened(
    context: StageContext, url: str, images: ImagesPart, size: int | None, patience: "Patience"
) -> "RemoteZip | None":
    """Return a remote zip of `size` bytes, None where its server does not support ranges."""
    from storage.fetch.remote_zip import RemoteZip

    try:
        archive = RemoteZip(url, image_limits(images.max_bytes), patience)
    except NoRangeError as error:
        context.report.say(f"{error.message}: the whole archive is fetched")
        return None
    if size not in {None, archive.size_bytes}:
        raise StorageError(
            f"{archive.title} has {archive.size_bytes} bytes, expected {size}", "check the address"
        )
    return archive


def fetch_below(
    context: StageContext,
    root: str,
    name: str,
    limits: "ArchiveLimits",
    choose: Callable[["RemoteFolder"], Collection[str]],
) -> ImageFiles:
    """Return chosen files of a folder below `root`, each fetched by itself.

    All of them are fetched anew once any file of the folder has changed.

    Args:
        context: The stage's folders.
        root: Any fsspec URL whose filesystem lists folders.
        name: Path of the folder below it, "" for the root itself.
        limits: What the folder may hold.
        choose: Called with the folder; returns the files that are wanted.

    Raises:
        StorageError: It cannot be reached, or the disk is full; a missing file is only a fault.
    """
    from storage.fetch.download_cache import gather
    from storage.fetch.remote_folder import RemoteFolder
    from storage.fetch.retries import Patience
    from storage.fetch.subset import fetch_objects

    url, patience = f"{root.rstrip('/')}/{name}".rstrip("/"), Patience()
    below = RemoteFolder(url, limits)
    names = choose(below)
    folder = _folder(context, url, below.version) / f"{name}.members"
    with context.report.track(
        f"fetch {len(names)} files of {name or below.title}", sum(map(below.size, names))
    ) as tick:

        def here(known: Collection[str]) -> None:
            tick(sum(map(below.size, known)))

        def fetch(missing: Collection[str], target: Path) -> Mapping[str, str]:
            return fetch_objects(below, missing, target, advance=tick, patience=patience)

        paths, faults = gather(folder, dict.fromkeys(names), here, fetch)
    return ImageFiles(tuple(paths), refused=below.refused, faults=faults)


def fetch_by_address(
    context: StageContext, name: str, images: ImagesPart, records: Sequence[Mapping[str, Any]]
) -> ImageFiles:
    """Return the chosen images, each fetched from the `coco_url` of its record.

    Raises:
        StorageError: The network stays down; a missing image is only a fault.
    """
    from storage.fetch.download_cache import gather
    from storage.fetch.retries import Patience
    from storage.fetch.subset import fetch_files
    from storage.names import name_fault, normal

    urls = {
        normal(record["file_name"]): str(record.get("coco_url", ""))
        for record in records
        if not name_fault(record["file_name"])
    }
    folder = _scratch(context) / f"{name}.addresses"
    with context.report.track(f"fetch images of {name} one by one", len(urls)) as tick:

        def fetch(missing: Collection[str], target: Path) -> Mapping[str, str]:
            some, patience = {each: urls[each] for each in missing}, Patience()
            return fetch_files(
                some, target, largest=images.max_bytes, advance=tick, patience=patience
            )

        paths, faults = gather(folder, dict.fromkeys(urls), lambda known: tick(len(known)), fetch)
    return ImageFiles(tuple(paths), faults=faults, fault="not at its address")


def _scratch(context: StageContext) -> Path:
    return context.scratch / "downloads"


def _folder(context: StageContext, url: str, version: Mapping[str, str]) -> Path:
    """Return the folder that all recipes share, or this recipe's own if the version is unknown."""
    from storage.fetch.download_cache import folder_of

    return folder_of(context.settings.work, url, version) or _scratch(context)


def _note(context: StageContext, name: str, images: ImageFiles) -> ImageFiles:
    """Record what was fetched, so that a run that resumes after a kill needs no network for it.

    Nothing is recorded if members are missing: they are tried again.
    """
    if not images.faults:
        path = _scratch(context) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(each.resolve()) for each in images.paths]
        replace_file(path, json.dumps({"paths": paths, "refused": dict(images.refused)}).encode())
    return images


def _noted(context: StageContext, name: str) -> ImageFiles | None:
    """Return what an earlier try of this recipe fetched, None if any of it is missing."""
    try:
        known = json.loads((_scratch(context) / f"{name}.json").read_text())
        paths, refused = tuple(map(Path, known["paths"])), dict(known["refused"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return ImageFiles(paths, refused=refused) if all(path.is_file() for path in paths) else None
