"""Answers from a model's engine as a page shows them: the whole text so far, again and again."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

import torch

from flows.chat.errors import ChatError, explained, sentence
from flows.chat.settings import AnswerSettings
from flows.inference.answer import Answer, Piece
from flows.inference.embeddings import Shown
from flows.inference.engine import Engine, FullError, StoppedError, Waiting
from model.assistant import Assistant, Turn
from model.batching import TextRequest
from model.errors import ModelError
from model.generation_configs import BeamConfig

Result = TypeVar("Result")
_BUSY = "Too many questions wait now. Please try again later."
_STOPPING = "The server is stopping."


class Reply(NamedTuple):
    """An answer as it grows, and a warning about its image.

    Attributes:
        text: The whole text so far.
        warning: Says that the image is unlike the training images; "" where it is like them. It is
            not part of the text, so it is in no later prompt.
    """

    text: str
    warning: str


class Question(NamedTuple):
    """What is asked.

    Attributes:
        text: The question; None asks for a caption.
        images: The files of its images.
        turns: What was said about them before.
    """

    text: str | None
    images: Sequence[bytes]
    turns: Sequence[Turn]


def write(engine: Engine, question: Question, settings: AnswerSettings) -> Generator[Reply]:
    """Yield an answer as it grows; whoever closes the generator frees its place.

    A beam search knows its text only at the end: it yields once, and others wait meanwhile.

    Raises:
        ChatError: It cannot be answered.
    """
    # A caption is of one image.
    images = question.images if question.text is not None else question.images[:1]
    with _errors_for_visitors():
        seen = [engine.embeddings.prepare(image) for image in images]
        if isinstance(settings.decoding, BeamConfig):
            yield engine.run(partial(_searched, engine, question, seen, settings))
        else:
            yield from _streamed(engine, question, seen, settings)


def alone(engine: Engine, work: Callable[[], Result]) -> Result:
    """Return what a function gives that needs the model for itself.

    Raises:
        ChatError: It cannot be done.
    """
    with _errors_for_visitors():
        return engine.run(work)


@contextmanager
def _errors_for_visitors() -> Generator[None]:
    """Turn what the model and its engine refuse into sentences for a visitor."""
    try:
        with explained():
            yield
    except FullError:
        raise ChatError(_BUSY) from None
    except StoppedError:
        raise ChatError(_STOPPING) from None


def _searched(
    engine: Engine, question: Question, seen: Sequence[Shown], settings: AnswerSettings
) -> Reply:
    """Return a whole answer; in the engine's thread."""
    patches = list(engine.embeddings.of([seen])[0]) if seen else []
    *_, text = engine.assistant.stream(
        patches,
        question.text,
        question.turns,
        decoding=settings.decoding,
        max_new_tokens=settings.tokens,
    )
    return Reply(text, _warning(engine.assistant, patches))


def _streamed(
    engine: Engine, question: Question, seen: Sequence[Shown], settings: AnswerSettings
) -> Generator[Reply]:
    assistant, warning, text = engine.assistant, "", ""
    prompt = assistant.template.caption_prompt
    if question.text is not None:
        prompt = assistant.prompt(question.text, question.turns, settings.tokens, len(seen))
    pieces: SimpleQueue[Piece] = SimpleQueue()
    answer = Answer(assistant.template.decode, settings.tokens, (), pieces.put)

    def request(patches: torch.Tensor) -> TextRequest:
        nonlocal warning
        warning = _warning(assistant, list(patches) if seen else [])
        return TextRequest(
            patches, prompt, settings.tokens, settings.decoding, answer.take, bool(seen)
        )

    engine.submit(Waiting(seen, request, answer))
    try:
        reason = None
        while reason is None:
            piece = pieces.get()
            reason, text = piece.reason, text + piece.text
            if piece.error:
                raise ModelError(piece.error)
            if piece.text or (reason and not text):
                yield Reply(text, warning)
    finally:
        answer.leave()


def _warning(assistant: Assistant, patches: Sequence[torch.Tensor]) -> str:
    """Return what is to be said about the first unusual image, "" where all are usual."""
    return sentence(next(filter(None, map(assistant.warning, patches)), ""))
