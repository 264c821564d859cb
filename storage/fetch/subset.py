"""Fetching many files, out of a remote zip or folder or by address, into one local tar.

Sixteen connections work at the same time. A failure costs only files that were not complete yet;
they are requested again after a pause. A file that cannot be fetched is recorded with its reason,
and if the network stays down, the work ends and the files so far are kept for the next run.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from storage.errors import StorageError, TransientError
from storage.fetch.gathered import GatheredTar, finished, gathering
from storage.fetch.remote import open_stream
from storage.fetch.remote_folder import RemoteFolder
from storage.fetch.remote_zip import RemoteZip
from storage.fetch.retries import Patience, Retries
from storage.fetch.spans import Span, batches
from storage.fetch.web import is_http

_Job = Callable[[threading.Event], None]
_Read = Callable[[], bytes | StorageError]
_REMEDY = "check the network and run again: the files so far are kept"


def fetch_members(
    archive: RemoteZip,
    names: Collection[str],
    target: Path,
    *,
    advance: Callable[[int], None],
    patience: Patience,
) -> dict[str, str]:
    """Fetch members of a remote zip into the tar `target`; does nothing if it is complete.

    Args:
        archive: The zip.
        names: Members, as `RemoteZip.names` has them.
        target: Local file to make.
        advance: Called with the packed bytes of each member found on disk or fetched.
        patience: How often to try, and with how many connections.

    Returns:
        Why a member is not in the tar, by name: it is damaged in the zip or needs a password.

    Raises:
        StorageError: Unreachable after all attempts (fetched files are kept), the archive changed
            meanwhile, or the disk is full.
    """
    if finished(target):
        advance(sum(map(archive.packed, names)))
        return {}
    with gathering(target) as tar:
        wanted = {name: (archive.size(name), archive.crc(name)) for name in names}
        if any(tar.kept[name] != wanted.get(name, tar.kept[name]) for name in tar.kept):
            tar.restart()
        here, missing = wanted.keys() & tar.kept.keys(), wanted.keys() - tar.kept.keys()
        advance(sum(map(archive.packed, here)))
        tar.check_room(sum(wanted[name][0] for name in missing))
        jobs = [
            partial(_fetch_batch, archive, batch, tar, advance, patience)
            for batch in batches(map(archive.span, missing))
        ]
        _run(jobs, patience.connections)
    return tar.faults


def fetch_objects(
    folder: RemoteFolder,
    names: Collection[str],
    target: Path,
    *,
    advance: Callable[[int], None],
    patience: Patience,
) -> dict[str, str]:
    """Fetch files of a remote folder into the tar `target`; does nothing if it is complete.

    Returns:
        Why a file is not in the tar, by name.

    Raises:
        StorageError: As `fetch_members`.
    """
    reads = {name: partial(_content_of, folder, name) for name in names}
    return _fetch_each(reads, target, lambda name: advance(folder.size(name)), patience)


def fetch_files(
    urls: Mapping[str, str],
    target: Path,
    *,
    largest: int,
    advance: Callable[[int], None],
    patience: Patience,
) -> dict[str, str]:
    """Fetch one file per address into the tar `target`; does nothing if it is complete.

    Args:
        urls: HTTP addresses by the file's name in the tar.
        target: Local file to make.
        largest: Bytes above which a file is refused.
        advance: Called with 1 for each finished file.
        patience: How often to try, and with how many connections.

    Returns:
        Why a file is not in the tar, by name.

    Raises:
        StorageError: As `fetch_members`.
    """
    reads = {name: partial(_body, url, largest, patience.timeout) for name, url in urls.items()}
    return _fetch_each(reads, target, lambda _: advance(1), patience)


def _fetch_each(
    reads: Mapping[str, _Read], target: Path, advance: Callable[[str], None], patience: Patience
) -> dict[str, str]:
    """Put what each read returns into a tar; `advance` is called with each finished name."""
    if finished(target):
        for name in reads:
            advance(name)
        return {}
    with gathering(target) as tar:
        missing = sorted(reads.keys() - tar.kept.keys())
        for name in reads.keys() & tar.kept.keys():
            advance(name)
        _run(
            [partial(_fetch_one, name, reads[name], tar, advance, patience) for name in missing],
            patience.connections,
        )
    return tar.faults


def _run(jobs: Sequence[_Job], connections: int) -> None:
    """Run jobs on threads; the first failure stops the others at their next file."""
    stop = threading.Event()
    with ThreadPoolExecutor(connections, "fetch") as pool:
        futures = [pool.submit(job, stop) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _fetch_batch(
    archive: RemoteZip,
    batch: Sequence[Span],
    tar: GatheredTar,
    advance: Callable[[int], None],
    patience: Patience,
    stop: threading.Event,
) -> None:
    """Fetch the members of one batch, requesting those again that arrived incomplete."""
    left, retries = list(batch), Retries(patience, _REMEDY, stop.wait)
    while left and not stop.is_set():
        try:
            for name, raw in archive.stream(left):
                _keep(tar, name, _content(archive, name, raw))
                advance(archive.packed(name))
                left = left[1:]
                retries.progress()
                if stop.is_set():
                    return
        except TransientError as error:
            retries.failed(error)


def _fetch_one(
    name: str,
    read: _Read,
    tar: GatheredTar,
    advance: Callable[[str], None],
    patience: Patience,
    stop: threading.Event,
) -> None:
    """Fetch one file, or record why it cannot be fetched."""
    retries = Retries(patience, _REMEDY, stop.wait)
    while not stop.is_set():
        try:
            _keep(tar, name, read())
            return advance(name)
        except TransientError as error:
            retries.failed(error)
    return None


def _keep(tar: GatheredTar, name: str, content: bytes | StorageError) -> None:
    if isinstance(content, StorageError):
        tar.refuse(name, str(content))
    else:
        tar.add(name, content)


def _content(archive: RemoteZip, name: str, raw: bytes) -> bytes | StorageError:
    """Return a member's content, or the error after a second read."""
    with suppress(StorageError):
        return archive.unpack(name, raw)
    try:
        return archive.read(name)  # a bit may have flipped in transfer
    except TransientError:
        raise
    except StorageError as error:
        return error


def _content_of(folder: RemoteFolder, name: str) -> bytes | StorageError:
    """Return a file's content, or the error.

    Raises:
        TransientError: A retry may help.
    """
    try:
        return folder.read(name)
    except TransientError:
        raise
    except StorageError as error:
        return error


def _body(url: str, largest: int, timeout: float) -> bytes | StorageError:
    """Return the whole file behind an address, or the error.

    Raises:
        TransientError: A retry may help.
    """
    if not is_http(url):
        return StorageError(f"{url!r} is not an HTTP address", "fix the annotation file")
    held = bytearray()
    try:
        with closing(open_stream(url, timeout=timeout)) as stream:
            while len(held) <= largest and (piece := stream.read()):
                held += piece
    except TransientError:
        raise
    except StorageError as error:
        return error
    if len(held) > largest:
        return StorageError(f"{url} has more than {largest} bytes")
    if stream.total is not None and len(held) != stream.total:
        raise TransientError(f"{url} ended after {len(held)} bytes, expected {stream.total}")
    return bytes(held)
