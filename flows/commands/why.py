"""`phivision ask --why`: where the assistant looked for each word of its answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.waiting import waiting
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from model.assistant import Assistant


def check_why(output: Path | None, also: Sequence[Path], *, why: bool) -> None:
    """Refuse what cannot be explained, or a file that cannot be written, before anything slow.

    Raises:
        PipelineError: There are several images, nothing would be drawn, or the file is not a PNG
            file in an existing folder.
    """
    if why and also:
        raise PipelineError("--why explains an answer about one image", "leave out --also")
    if output is None:
        return
    if not why:
        raise PipelineError("--output is for the drawing of --why", "give --why as well")
    if output.suffix.lower() != ".png" or output.is_dir():
        raise PipelineError(f"not the name of a PNG file: {output}", "name one that ends with .png")
    if not output.absolute().parent.is_dir():
        raise PipelineError(
            f"no such folder: {output.parent}", "make it first, or name another file"
        )


def print_why(
    assistant: "Assistant", data: bytes, question: str, answer: str, output: Path | None
) -> None:
    """Print a grid for each word of an answer, and draw them where a file is named."""
    from flows.commands.heat_text import heat_text, shows_shades
    from flows.overlay import png, sheet
    from model.decoding import decode_image
    from model.explanation import explain

    if not answer:
        print("no word was written, so there is nothing to explain")
        return
    with waiting("hiding one patch after another"):
        explanation = explain(assistant, data, question, answer)
    image = decode_image(data, assistant.card["max_pixels"])
    print(f"\n{heat_text(explanation, plain=not shows_shades())}\n")
    print("Each grid divides the part of the image that the encoder sees", end="")
    view = explanation.view
    if view.covers(*image.size):
        print(", which is all of it.")
    else:
        right, bottom = view.left + view.width, view.top + view.height
        print(
            f": {max(view.left, 0):.0f} to {min(right, image.width):.0f} of {image.width} pixels "
            f"across and {max(view.top, 0):.0f} to {min(bottom, image.height):.0f} of "
            f"{image.height} down."
        )
    if output is not None:
        output.write_bytes(png(sheet(image, explanation)))
        print(output)
