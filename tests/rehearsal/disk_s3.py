"""moto's S3 server with large objects on the disk: `python tests/rehearsal/disk_s3.py FOLDER`.

moto joins the parts of an upload in memory, three times over, and reads a whole object to answer
for a range of it. Here an object above `LARGE` bytes is one file, and what is read of it is mapped.
The server prints its address and runs until its standard input ends.
"""

import mmap
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from moto.s3 import models
from moto.server import ThreadedMotoServer

LARGE = 32 * 2**20


class Mapped(mmap.mmap):
    """A large object's bytes, with the file that holds them."""

    file: Any


def mapped(file: Any) -> Mapped:
    """Return a file's bytes without reading them."""
    file.flush()
    found = Mapped(file.fileno(), 0, access=mmap.ACCESS_READ)
    found.file = file
    return found


class DiskMultipart(models.FakeMultipart):
    """An upload whose parts are joined in a file."""

    __module__ = models.__name__  # moto takes the name of the service from it

    def complete(self, body: Iterator[tuple[int, str]]) -> Any:
        """Join the parts; the checks of their number and tags are moto's own."""
        chosen = list(body)
        sizes = {number: part.contentsize for number, part in self.parts.items()}
        if sum(sizes.values()) <= LARGE:
            return super().complete(iter(chosen))
        tags, file = bytearray(), tempfile.TemporaryFile()  # noqa: SIM115  # kept with the object
        for number, tag in chosen:
            part = self.parts.get(number)
            if part is None or part.etag.strip('"') != tag.strip('"'):
                raise models.InvalidPart
            tags += bytes.fromhex(part.etag.strip('"'))
            part._value_buffer.seek(0)
            shutil.copyfileobj(part._value_buffer, file, 2**20)
            part.dispose()
        whole = models.md5_hash()
        whole.update(bytes(tags))
        return mapped(file), f"{whole.hexdigest()}-{len(chosen)}", None


def value_of(key: Any) -> Any:
    """Return an object's bytes, mapped where they are many."""
    with key.lock:
        if key.contentsize > LARGE:
            return mapped(key._value_buffer)
        key._value_buffer.seek(0)
        return key._value_buffer.read()


_small_value = models.FakeKey.value.fset  # ty: ignore[unresolved-attribute]


def set_value(key: Any, value: Any) -> None:
    """Take an object's bytes; those of a mapped file stay where they are."""
    if isinstance(value, Mapped):
        key._value_buffer, key.contentsize = value.file, len(value)
        return
    _small_value(key, value)


def main() -> None:
    """Serve until standard input ends."""
    tempfile.tempdir = sys.argv[1]
    models.FakeMultipart = DiskMultipart  # ty: ignore[invalid-assignment]
    models.FakeKey.value = property(value_of, set_value)  # ty: ignore[invalid-assignment]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
