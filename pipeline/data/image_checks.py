"""Whether images decode, and their sizes: the costly part of stage `images`, in other processes.

The invariant: a check belongs to an image's content. The stage reads every image itself and uses
the check of exactly those bytes, or decodes them where there is none. So the same tables come out
whatever the other processes saw, and a file that changed meanwhile is checked as it is now.
"""

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pyarrow as pa

from model.decoding import BadImageError, decode_image
from pipeline.data.image_files import Members, image_limits
from pipeline.engine.spreading import in_order
from pipeline.engine.stage import StageContext
from storage.archives.archive_group import open_archives
from storage.archives.members import Archive
from storage.errors import StorageError
from storage.tables import read_table, write_arrow

_KEPT_OPEN = 4  # of a dataset's archives at once; splits are one each, as a rule
_CHECKS = pa.schema(
    [
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("reason", pa.string()),  # null for an image that decodes
        ("detail", pa.string()),
    ]
)


class Checked(NamedTuple):
    """What decoding an image showed.

    Attributes:
        width: In pixels, 0 for one that cannot be used.
        height: In pixels, 0 for one that cannot be used.
        reason: Why it cannot be used, None for one that can.
        detail: What exactly is wrong.
    """

    width: int
    height: int
    reason: str | None = None
    detail: str = ""

    def size(self) -> tuple[int, int]:
        """Return width and height.

        Raises:
            BadImageError: The image cannot be used.
        """
        if self.reason is not None:
            raise BadImageError(self.reason, self.detail)
        return self.width, self.height


class CheckJob(NamedTuple):
    """Some images to be checked by one process.

    Attributes:
        number: Its number, which names its file of results.
        members: Where the images are.
    """

    number: int
    members: Sequence[Members]


@dataclass(frozen=True)
class CheckWork:
    """What all jobs have in common; it is sent to other processes.

    Attributes:
        folder: Gets the results; every process must see it, and the images.
        max_bytes: Of an image, at most.
        max_pixels: Of an image, at most.
    """

    folder: Path
    max_bytes: int
    max_pixels: int

    def path(self, number: int) -> Path:
        """Return the file with the results of a job."""
        return self.folder / f"checks-{number:06d}.parquet"


def _readable(work: CheckWork, job: CheckJob) -> Iterator[bytes]:
    """Yield the images that can be read; the stage meets the faults of the others by itself."""
    for paths, own, names in job.members:
        for name in names.to_pylist():
            with suppress(StorageError):
                yield _OPENED.archive(paths, own, work.max_bytes).read(name)


class _Opened(threading.local):
    """Keeps the latest archives that a thread opened, since a worker does many jobs of a dataset.

    Threads share none: reading moves the one position in a file.
    """

    def __init__(self) -> None:
        self._archives: dict[tuple[tuple[Path, ...], bool, int], Archive] = {}

    def archive(self, paths: tuple[Path, ...], own: bool, max_bytes: int) -> Archive:
        """Return the open archives at some paths as one."""
        key = paths, own, max_bytes
        if key not in self._archives:
            self._archives[key] = open_archives(paths, image_limits(max_bytes), own=own)
        self._archives[key] = latest = self._archives.pop(key)
        self.close(_KEPT_OPEN)
        return latest

    def close(self, kept: int = 0) -> None:
        """Close all but the latest few."""
        for key in list(self._archives)[: max(len(self._archives) - kept, 0)]:
            self._archives.pop(key).close()


_OPENED = _Opened()


def check(data: bytes, max_pixels: int) -> Checked:
    """Decode an image and return what that showed."""
    try:
        return Checked(*decode_image(data, max_pixels).size)
    except BadImageError as error:
        return Checked(0, 0, error.reason, error.detail)


def check_images(work: CheckWork, job: CheckJob) -> int:
    """Check some images, write what was found to a file, and return the number of the job."""
    found: dict[str, Checked] = {}
    for data in _readable(work, job):
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in found:
            found[sha256] = check(data, work.max_pixels)
    columns = zip(*((key, *each) for key, each in found.items()), strict=True)
    arrays = [list(column) for column in columns] or [[] for _ in _CHECKS]
    own_name = work.folder / f"{uuid4().hex}.part"  # Dask may give a job to two workers
    write_arrow(own_name, pa.table(arrays, _CHECKS))
    own_name.replace(work.path(job.number))
    return job.number


def spread_checks(
    context: StageContext, work: CheckWork, jobs: Sequence[CheckJob]
) -> Iterator[Mapping[str, Checked]]:
    """Yield the checks of each job by content, in the order of their numbers 0, 1, 2….

    Later jobs go on while a caller uses what earlier ones found. Jobs that a killed run finished
    are not done again.
    """
    assert context.fan_out is not None
    check_some = partial(check_images, work)
    for job in in_order(
        context.fan_out, check_some, jobs, lambda job: _known(work.path(job.number)) is not None
    ):
        yield _known(work.path(job.number)) or {}


def _known(path: Path) -> Mapping[str, Checked] | None:
    """Return the checks in a file, None if it is not there or cannot be read."""
    try:
        rows = read_table(path).to_pylist()
    except StorageError:
        return None
    return {
        row["sha256"]: Checked(row["width"], row["height"], row["reason"], row["detail"])
        for row in rows
    }
