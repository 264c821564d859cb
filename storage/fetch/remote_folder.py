"""A folder of an object store as an archive: its files are listed once and read one by one."""

from pathlib import Path

from storage.archives.members import Archive, ArchiveLimits, Member
from storage.errors import redact
from storage.fetch.remote import list_files, read_file


class RemoteFolder(Archive):
    """The files below a folder of an object store; safe for use by several threads.

    Attributes:
        version: Identity of all files, as `storage.fetch.remote.probe` gives it.

    Args:
        url: Any fsspec URL whose filesystem lists folders: ``s3://``, ``memory://``, not HTTP.
        limits: What the folder may hold.

    Raises:
        UnsafeArchiveError: It is over a limit.
        StorageError: It cannot be reached.
    """

    def __init__(self, url: str, limits: ArchiveLimits) -> None:
        super().__init__(Path(url.rpartition("/")[2]), limits)
        self.title, self._url = redact(url), url
        sizes, self.version = list_files(url)
        self._admit(Member(name, size, size, name) for name, size in sizes.items())

    def _load(self, member: Member) -> bytes:
        return read_file(self._url, member.key)

    def close(self) -> None:
        """Nothing stays open between reads."""
