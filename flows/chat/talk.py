"""What the chat does with a message: it checks it and streams the answer; no web code here.

The picture of a question is the newest one that was sent. A new picture begins a new subject: what
was said about the one before is no part of the prompt.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from flows.overlay import sheet
from model.assistant import Assistant, Turn, is_text
from model.decoding import KINDS, decode_image
from model.errors import ModelError
from model.explanation import explain

MEGABYTE = 2**20
LOOKED_AT = 12  # words of an answer that are drawn


# Shown where the model ends its answer at once; it is no part of a later prompt.
NOTHING = "(The model wrote nothing about this.)"


class ChatError(Exception):
    """A message that cannot be answered; the text tells its writer what to do."""


@dataclass(frozen=True)
class Limits:
    """What one visitor, and all of them together, may ask of the server.

    Attributes:
        picture_bytes: Largest picture file.
        question_characters: Longest question.
        at_once: Questions that are answered at the same time.
        waiting: Questions that may wait behind them; more are turned away.
        keep_seconds: Age at which an uploaded picture is deleted.
        folder_bytes: All uploaded pictures together; more are turned away.
    """

    picture_bytes: int = 20 * MEGABYTE
    question_characters: int = 1000
    at_once: int = 2
    waiting: int = 64
    keep_seconds: int = 3600
    folder_bytes: int = 1024 * MEGABYTE


@dataclass(frozen=True)
class Subject:
    """A picture and what was said about it.

    Attributes:
        picture: Its file, None before one was sent.
        turns: Questions with their answers, oldest first.
    """

    picture: Path | None = None
    turns: tuple[Turn, ...] = field(default=())


class Reply(NamedTuple):
    """An answer as it grows, and what is to be known about its image.

    Attributes:
        text: The whole text so far.
        warning: That the image is unlike those of the training; "" where it is like them. It is no
            part of the text, so no later prompt holds it.
    """

    text: str
    warning: str


class Talk:
    """Answers the messages of a chat.

    Args:
        assistant: Who answers.
        folder: The only folder from which pictures are read.
        limits: What a message may hold.
    """

    def __init__(self, assistant: Assistant, folder: Path, limits: Limits) -> None:
        self.assistant, self.folder, self.limits = assistant, folder.resolve(), limits

    def check(self, text: str, files: Sequence[str]) -> None:
        """Refuse a message before it stands in the chat.

        Raises:
            ChatError: It is empty, too long or no text, or its picture cannot be used.
        """
        if not text.strip() and not files:
            raise ChatError("Write a question, or add a picture.")
        if not is_text(text):
            raise ChatError("Your question holds half a character. Please write it again.")
        longest = self.limits.question_characters
        if len(text) > longest:
            raise ChatError(
                f"Your question has {len(text):,} characters; at most {longest:,} are read. "
                "Please shorten it."
            )
        if len(files) > 1:
            raise ChatError("Please send one picture at a time.")
        for name in files:
            with _explained():
                decode_image(self._read(Path(name)), self.assistant.card["max_pixels"])

    def answer(
        self, text: str, files: Sequence[str], history: Sequence[dict[str, Any]]
    ) -> Iterator[Reply]:
        """Yield the answer to a message as it grows; a picture alone gets a caption.

        Args:
            text: The question.
            files: Path of the picture that came with it, if one did.
            history: Earlier messages, as Gradio's chat keeps them.

        Raises:
            ChatError: The message cannot be answered.
        """
        self.check(text, files)
        subject = Subject(Path(files[0])) if files else subject_of(history)
        if subject.picture is None:
            raise ChatError("Add a picture first: this assistant answers about pictures.")
        question, said, warning = text if text.strip() else None, "", ""
        with _explained():
            patches = self.assistant.see(self._read(subject.picture))
            warning = self.assistant.warning(patches)
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
        if subject.picture is None:
            raise ChatError("Ask something about a picture first.")
        answer, _ = _parts(history[newest].get("content"))
        with _explained():
            picture = self._read(subject.picture)
            asked = question if question.strip() else None
            found = explain(self.assistant, picture, asked, answer, subject.turns)
            image = decode_image(picture, self.assistant.card["max_pixels"])
        return sheet(image, found, LOOKED_AT)

    def _read(self, path: Path) -> bytes:
        real = path.resolve()
        if not real.is_relative_to(self.folder) or not real.is_file():
            raise ChatError("The picture is no longer here: please add it again.")
        if real.stat().st_size > self.limits.picture_bytes:
            raise ChatError(
                f"The picture has {real.stat().st_size / MEGABYTE:.1f} MB; at most "
                f"{self.limits.picture_bytes / MEGABYTE:.0f} MB are taken. Please make it smaller."
            )
        return real.read_bytes()


def subject_of(history: Sequence[dict[str, Any]]) -> Subject:
    """Return the newest picture of a chat and the questions that were answered about it."""
    picture: Path | None = None
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
            picture, turns = Path(files[-1]), []
        question = texts
    return Subject(picture, tuple(turns))


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
    "not an image": "This is not a picture that can be read. Please send a JPEG or PNG.",
    "unsupported format": f"Pictures of this kind cannot be read. Please send a {KINDS}.",
    "unsupported values": "The picture holds no usual greys. Please send a JPEG or PNG.",
    "too many pixels": "The picture has too many pixels. Please make it smaller.",
    "animated": "Animated pictures cannot be read. Please send a single picture.",
    "broken image": "The picture is damaged and cannot be read. Please send another one.",
}


@contextmanager
def _explained() -> Generator[None]:
    """Turn the model room's errors into sentences for a visitor, without any detail of ours."""
    try:
        yield
    except ModelError as error:
        text = str(error)
        sentence = f"{text[:1].upper()}{text[1:]}."
        raise ChatError(_REASONS.get(getattr(error, "reason", ""), sentence)) from None
