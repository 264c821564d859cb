"""What lmms-eval asks, in our words: how to write an answer, which image, which batches."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from model.bundle import decoding_of
from model.generation_configs import GenerationConfig, GreedyConfig, TopPConfig
from pipeline.errors import PipelineError

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


class Writing(NamedTuple):
    """How an answer is written.

    Attributes:
        decoding: How tokens are chosen.
        max_new_tokens: Tokens after which the answer is cut.
        until: Texts that end the answer and are no part of it.
    """

    decoding: GenerationConfig
    max_new_tokens: int
    until: tuple[str, ...]

    def cut(self, text: str) -> str:
        """Return an answer up to the first text that ends it."""
        ends = [text.index(end) for end in self.until if end in text]
        return text[: min(ends, default=len(text))].strip()


class Question(NamedTuple):
    """One request.

    Attributes:
        number: Its place among the requests.
        show: Returns the image's file content; called when its batch comes.
        ids: Token ids after the image.
        targets: How many of the last ids are to be judged; 0 where an answer is to be written.
        writing: How to write it.
    """

    number: int
    show: Callable[[], bytes]
    ids: list[int]
    targets: int
    writing: Writing


NOTHING = Writing(GreedyConfig(), 0, ())


def read_writing(asked: Mapping[str, Any], beams: int, max_new_tokens: int, room: int) -> Writing:
    """Return a task's `generation_kwargs` as how to write an answer.

    Sampling has the seed 0, so that a score can be repeated.

    Args:
        asked: The task's settings: `until`, `max_new_tokens`, `num_beams`, `do_sample`,
            `temperature`, `top_p`.
        beams: Beams where the task names no number; 1 is greedy.
        max_new_tokens: Tokens where the task names no number.
        room: Tokens for which the language model has positions.
    """
    until = asked.get("until") or ()
    ends = (until,) if isinstance(until, str) else tuple(until)
    heat = float(asked.get("temperature") or 0)
    decoding: GenerationConfig = decoding_of(int(asked.get("num_beams") or beams))
    if heat > 0 and asked.get("do_sample", True):
        decoding = TopPConfig(top_p=float(asked.get("top_p") or 1), temperature=heat, seed=0)
    tokens = int(asked.get("max_new_tokens") or max_new_tokens)
    return Writing(decoding, min(tokens, room), tuple(end for end in ends if end))


def one_image(visuals: Any, task: str) -> bytes:
    """Return the one image of a request as a file, so that it is read like any other.

    Args:
        visuals: What the task's `doc_to_visual` gave.
        task: Name of the task.

    Raises:
        PipelineError: It is not exactly one image.
    """
    found = visuals if isinstance(visuals, list | tuple) else [visuals]
    images = [each for each in found if isinstance(each, Image.Image)]
    if len(images) != 1 or len(found) != 1:
        kinds = ", ".join(type(each).__name__ for each in found) or "nothing"
        raise PipelineError(
            f"task {task} shows {kinds}: phivision answers about one image",
            "choose tasks with one image per question, such as mme, gqa, vqav2 or textvqa",
        )
    upright = ImageOps.exif_transpose(images[0])
    stream = io.BytesIO()
    if upright.mode.startswith(("I", "F")):
        upright.save(stream, "TIFF")
    else:
        shown = upright if upright.mode in _PNG_MODES else upright.convert("RGB")
        shown.save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Yield questions that can be worked on together: written alike, of similar length."""

    def alike(question: Question) -> tuple[str, int]:
        return question.writing.decoding.model_dump_json(), question.writing.max_new_tokens

    ordered = sorted(questions, key=lambda each: (alike(each), len(each.ids)))
    for _, group in groupby(ordered, key=alike):
        same = list(group)
        for start in range(0, len(same), size):
            yield same[start : start + size]
