"""Image files named on the command line, read before slow imports."""

from pathlib import Path

from model.decoding import KINDS
from pipeline.errors import PipelineError

MAX_BYTES = 64 * 2**20


def read_image(path: Path) -> bytes:
    """Return an image file's content.

    Raises:
        PipelineError: There is no such file, or it is too large to be an image.
    """
    if not path.is_file():
        raise PipelineError(f"No such file: {path}", f"give the path of a {KINDS}")
    if path.stat().st_size > MAX_BYTES:
        raise PipelineError(
            f"{path} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}",
            "give a smaller image",
        )
    return path.read_bytes()
