"""What the chat does with a message: it checks it and streams the answer; no web code here.

The image of a question is the newest one that was sent. A new image starts a new subject: what
was said about the previous one is not part of the prompt.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from flows.chat.limits import MEGABYTE, Limits
from flows.overlay import sheet
from model.assistant import Assistant, Turn, is_text
from model.decoding import KINDS, decode_image
from model.errors import ModelError
from model.explanation import explain

LOOKED_AT = 12  # words of an answer that are drawn


# Shown where the model ends its answer at once; it is not part of a later prompt.
NOTHING = "(The model wrote nothing about this.)"


class ChatError(Exception):
    """A message that cannot be answered; the text tells its writer what to do."""


@dataclass(frozen=True)
class Subject:
    """An image and what was said about it.

    Attributes:
        image: Its file, None before one was sent.
        turns: Questions with their answers, oldest first.
    """

    image: Path | None = None
    turns: tuple[Turn, ...] = field(default=())


class Reply(NamedTuple):
    """An answer as it grows, and a warning about its image.

    Attributes:
        text: The whole text so far.
        warning: Says that the image is unlike the training images; "" where it is like them. It is
            not part of the text, so it is in no later prompt.
    """

    text: str
    warning: str


class Talk:
    """Answers the messages of a chat.

    Args:
        assistant: The assistant that answers.
        folder: The only folder from which images are read.
        limits: Limits of a message.
    """

    def __init__(self, assistant: Assistant, folder: Path, limits: Limits) -> None:
        self.assistant, self.folder, self.limits = assistant, folder.resolve(), limits

    def check(self, text: str, files: Sequence[str]) -> None:
        """Refuse a message before it appears in the chat.

        Raises:
            ChatError: It is empty, too long or not valid text, or its image cannot be used.
        """
        if not text.strip() and not files:
            raise ChatError("Write a question, or add an image.")
        if not is_text(text):
            raise ChatError("Your question has an incomplete character. Please write it again.")
        longest = self.limits.question_characters
        if len(text) > longest:
            raise ChatError(
                f"Your question has {len(text):,} characters; at most {longest:,} are allowed. "
                "Please shorten it."
            )
        if len(files) > 1:
            raise ChatError("Please send one image at a time.")
        for name in files:
            with _explained():
                decode_image(self._read(Path(name)), self.assistant.card["max_pixels"])

    def answer(
        self, text: str, files: Sequence[str], history: Sequence[dict[str, Any]]
    ) -> Iterator[Reply]:
        """Yield the answer to a message as it grows; an image alone gets a caption.

        Args:
            text: The question.
            files: Path of the image that came with it, if one did.
            history: Earlier messages, as Gradio's chat keeps them.

        Raises:
            ChatError: The message cannot be answered.
        """
        self.check(text, files)
        subject = Subject(Path(files[0])) if files else subject_of(history)
        if subject.image is None:
            raise ChatError("Add an image first: this assistant answers about images.")
        question, said, warning = text if text.strip() else None, "", ""
        with _explained():
            patches = self.assistant.see(self._read(subject.image))
            warning = _sentence(self.assistant.warning(patches))
            for said in self.assistant.stream(patches, question, subject.turns):
                yield Reply(said, warning)
        if not said:
            yield Reply(NOTHING, warning)

    def look(self, history: Sequence[dict[str, Any]]) -> Image.Image:
        """Return an image that shows for each word of the newest answer which patches mattered.

        Args:
            history: The messages, as Gradio's chat keeps them.

        Raises:
            ChatError: Nothing was answered yet, or the answer cannot be explained.
        """
        newest = max((at for at, each in enumerate(history) if _answered(each)), default=0)
        subject, question = subject_of(history[: newest - 1]), ""
        if newest:
            question, files = _parts(history[newest - 1].get("content"))
            subject = Subject(Path(files[-1])) if files else subject
        if subject.image is None:
            raise ChatError("Ask something about an image first.")
        answer, _ = _parts(history[newest].get("content"))
        with _explained():
            data = self._read(subject.image)
            asked = question if question.strip() else None
            found = explain(self.assistant, data, asked, answer, subject.turns)
            image = decode_image(data, self.assistant.card["max_pixels"])
        return sheet(image, found, LOOKED_AT)

    def _read(self, path: Path) -> bytes:
        real = path.resolve()
        if not real.is_relative_to(self.folder) or not real.is_file():
            raise ChatError("The image is no longer here: please add it again.")
        if real.stat().st_size > self.limits.image_bytes:
            raise ChatError(
                f"The image has {real.stat().st_size / MEGABYTE:.1f} MB; at most "
                f"{self.limits.image_bytes / MEGABYTE:.0f} MB are allowed. Please make it smaller."
            )
        return real.read_bytes()


def subject_of(history: Sequence[dict[str, Any]]) -> Subject:
    """Return the newest image of a chat and the questions that were answered about it."""
    image: Path | None = None
    turns: list[Turn] = []
    question = ""
    for message in history:
        texts, files = _parts(message.get("content"))
        if message.get("role") != "user":
            if question and texts and texts != NOTHING:
                turns.append((question, texts))
            question = ""
            continue
        if files:
            image, turns = Path(files[-1]), []
        question = texts
    return Subject(image, tuple(turns))


def _answered(message: dict[str, Any]) -> bool:
    """Return whether a message is an answer with words."""
    text, _ = _parts(message.get("content"))
    return message.get("role") == "assistant" and bool(text) and text != NOTHING


def _parts(content: Any) -> tuple[str, list[str]]:
    """Return the text of a message and the paths of its files."""
    texts, files = [], []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") == "text":
            texts.append(str(part.get("text", "")))
        elif isinstance(part, dict):
            path = (part.get("file") or part).get("path")
            files += [str(path)] if path else []
    return " ".join(texts).strip(), files


_REASONS = {
    "empty file": "The file is empty. Please send a JPEG or PNG.",
    "not an image": "This is not an image that can be read. Please send a JPEG or PNG.",
    "unsupported format": f"Images of this kind cannot be read. Please send a {KINDS}.",
    "unsupported values": "The image's pixel values are unusual. Please send a JPEG or PNG.",
    "too many pixels": "The image has too many pixels. Please make it smaller.",
    "animated": "Animated images cannot be read. Please send a single image.",
    "broken image": "The image is damaged and cannot be read. Please send another one.",
}


@contextmanager
def _explained() -> Generator[None]:
    """Turn the errors of `model` into sentences for a visitor, without internal details."""
    try:
        yield
    except ModelError as error:
        reason = getattr(error, "reason", "")
        raise ChatError(_REASONS.get(reason, _sentence(str(error)))) from None


def _sentence(text: str) -> str:
    """Return a text with a capital and a full stop; "" stays empty."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""
