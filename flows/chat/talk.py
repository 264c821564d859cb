"""What the chat does with a message: it checks it and streams the answer; no web code here."""

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

from flows.chat.errors import ChatError, explained
from flows.chat.history import NOTHING, Subject, newest_of
from flows.chat.limits import MEGABYTE, Limits
from flows.chat.models import Models
from flows.chat.settings import AnswerSettings, settings_for
from flows.chat.writing import Question, Reply, alone, write
from flows.overlay import sheet
from model.asked import is_text
from model.decoding import decode_image
from model.explanation import explain

LOOKED_AT = 12  # words of an answer that are drawn


class Talk:
    """Answers the messages of a chat.

    Args:
        models: The models that can be chosen.
        folder: The only folder from which images are read.
        limits: Limits of a message.
    """

    def __init__(self, models: Models, folder: Path, limits: Limits) -> None:
        self.models, self.folder, self.limits = models, folder.resolve(), limits
        self.card = models.get().card

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
        most = self.models.get().most_images
        if len(files) > most:
            raise ChatError(f"Please send {_images(most)} at a time.")
        for name in files:
            with explained():
                decode_image(self._read(Path(name)), self.card["max_pixels"])

    def answer(
        self,
        text: str,
        files: Sequence[str],
        subject: Subject,
        model: str = "",
        settings: AnswerSettings | None = None,
    ) -> Generator[Reply]:
        """Yield the answer to a message as it grows; an image alone gets a caption.

        Args:
            text: The question.
            files: Paths of the images that came with it, if any did; they begin a new subject.
            subject: What the chat was about before.
            model: Who answers; "" is the first model.
            settings: How; None as the model's card says.

        Raises:
            ChatError: The message cannot be answered.
        """
        self.check(text, files)
        subject = Subject(tuple(map(Path, files))) if files else subject
        return self.reply(subject, text, model, settings)

    def reply(
        self, subject: Subject, text: str, model: str = "", settings: AnswerSettings | None = None
    ) -> Generator[Reply]:
        """Yield the answer to a question about a subject as it grows.

        Args:
            subject: The images and what was said about them.
            text: The question; "" asks for a caption.
            model: See `answer`.
            settings: See `answer`.

        Raises:
            ChatError: It cannot be answered.
        """
        engine = self.models.engine(model)
        settings = settings or settings_for(engine.assistant, self.limits)
        if not subject.images and not engine.assistant.text_only:
            raise ChatError("Add an image first: this assistant answers about images.")
        images = [self._read(image) for image in subject.images]
        question = Question(text if text.strip() else None, images, subject.turns)
        with closing(write(engine, question, settings)) as replies:
            for reply in replies:
                yield reply if reply.text else reply._replace(text=NOTHING)

    def look(self, history: Sequence[dict[str, Any]], model: str = "") -> Image.Image:
        """Return an image that shows for each word of the newest answer which patches mattered.

        Args:
            history: The messages, as Gradio's chat keeps them.
            model: Who answered; "" is the first model.

        Raises:
            ChatError: Nothing was answered yet, or the answer cannot be explained.
        """
        newest = newest_of(history)
        if newest is None or not newest.subject.images:
            raise ChatError("Ask something about an image first.")
        if len(newest.subject.images) > 1:
            raise ChatError("Where it looked is shown for answers about one image.")
        data, engine = self._read(newest.subject.images[0]), self.models.engine(model)
        asked = newest.question if newest.question.strip() else None
        turns = newest.subject.turns
        explanation = alone(
            engine, lambda: explain(engine.assistant, data, asked, newest.answer, turns)
        )
        return sheet(decode_image(data, self.card["max_pixels"]), explanation, LOOKED_AT)

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


def _images(count: int) -> str:
    return "one image" if count == 1 else f"{count} images at most"
