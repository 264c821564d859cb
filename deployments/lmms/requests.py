"""lmms-eval's requests in this project's terms: decoding settings, the image, batches."""

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
    """How an answer is generated.

    Attributes:
        decoding: How tokens are chosen.
        max_new_tokens: Tokens after which the answer is cut.
        until: Stop strings, which are not part of the answer.
    """

    decoding: GenerationConfig
    max_new_tokens: int
    until: tuple[str, ...]

    def cut(self, text: str) -> str:
        """Return an answer up to its first stop string."""
        ends = [text.index(end) for end in self.until if end in text]
        return text[: min(ends, default=len(text))].strip()


class Question(NamedTuple):
    """One request.

    Attributes:
        number: Its index among the requests.
        show: Returns the image's file content; called when its batch comes.
        ids: Token ids after the image.
        targets: How many of the last ids are scored; 0 where an answer is to be generated.
        writing: How to generate it.
    """

    number: int
    show: Callable[[], bytes]
    ids: list[int]
    targets: int
    writing: Writing


NOTHING = Writing(GreedyConfig(), 0, ())


def read_writing(asked: Mapping[str, Any], beams: int, max_new_tokens: int, room: int) -> Writing:
    """Return the generation settings that a task's `generation_kwargs` ask for.

    Sampling uses seed 0, so that scores are reproducible.

    Args:
        asked: The task's settings: `until`, `max_new_tokens`, `num_beams`, `do_sample`,
            `temperature`, `top_p`.
        beams: Default number of beams; 1 is greedy.
        max_new_tokens: Default number of tokens.
        room: Tokens for which the language model has positions left.
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
    """Return the one image of a request as file content, so that it is decoded like any other.

    Raises:
        PipelineError: It is not exactly one image.
    """
    given = visuals if isinstance(visuals, list | tuple) else [visuals]
    images = [each for each in given if isinstance(each, Image.Image)]
    if len(images) != 1 or len(given) != 1:
        kinds = ", ".join(type(each).__name__ for each in given) or "nothing"
        raise PipelineError(
            f"task {task} gives {kinds}: phivision needs exactly one image per question",
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
    """Yield batches of questions with equal generation settings and similar lengths."""

    def alike(question: Question) -> tuple[str, int]:
        return question.writing.decoding.model_dump_json(), question.writing.max_new_tokens

    ordered = sorted(questions, key=lambda each: (alike(each), len(each.ids)))
    for _, group in groupby(ordered, key=alike):
        same = list(group)
        for start in range(0, len(same), size):
            yield same[start : start + size]
