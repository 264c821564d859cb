"""Image files named on the command line, read before slow imports."""

from collections.abc import Sequence
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


def split_question(
    image: str, question: str | None, also: Sequence[Path], *, why: bool
) -> tuple[list[Path], str]:
    """Return the images and the question of `ask`, where a single argument is a question alone.

    Raises:
        PipelineError: The question is missing, or the image that `why` needs.
    """
    if question is not None:
        return [Path(image), *also], question
    remedy = 'phivision ask PHOTO.jpg "What is red?"'
    if Path(image).is_file() or also:
        raise PipelineError(f"no question about {image}", remedy)
    if why:
        raise PipelineError("--why shows what mattered in an image, and none was given", remedy)
    return [], image
