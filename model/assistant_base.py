"""What an assistant knows from its bundle without its models: card, template, warnings, prompts."""

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from model.asked import Turn, asked_ids, is_text
from model.bundle import BUNDLE, FORMAT, TWO_ENCODERS
from model.errors import ModelError
from model.prompt import PromptTemplate
from model.training_reference import load_reference


class AssistantBase:
    """A bundle's card, prompt template and training reference.

    A subclass adds the models, and says how many positions they have.

    Args:
        folder: The bundle.

    Raises:
        ModelError: The folder is not a bundle, or has another format.
    """

    max_positions: float
    """Positions that the language model was made for; infinite where it knows no limit."""
    prefix: int
    """Tokens of an image, the separator included."""

    def __init__(self, folder: Path) -> None:
        path = folder / BUNDLE
        if not path.is_file():
            raise ModelError(f"{folder} is not a phivision bundle: it has no {BUNDLE}")
        self.card: dict[str, Any] = json.loads(path.read_text())
        if self.card.get("format") not in (FORMAT, TWO_ENCODERS):
            raise ModelError(
                f"{path} has format {self.card.get('format')}, this phivision reads {FORMAT} and "
                f"{TWO_ENCODERS}"
            )
        self.folder = folder
        self.template = PromptTemplate.load(folder / "lm", **self.card["template"])
        self.reference = load_reference(folder, self.card)

    def warning(self, patches: torch.Tensor) -> str:
        """Return a sentence if an image is unlike the training images, "" where it is like them.

        Older bundles, which have no reference, never warn.

        Args:
            patches: The image's patch embeddings from `see`.
        """
        return "" if self.reference is None else self.reference.warning(patches)

    @property
    def most_images(self) -> int:
        """How many images a question may be about: as many as in training."""
        return int(self.card.get("max_images", 1))

    @property
    def text_only(self) -> bool:
        """Whether it was also trained on texts alone, so that it answers without an image, too."""
        return bool(self.card.get("text_only", False))

    @cached_property
    def room(self) -> int:
        """Tokens that a question and its history may have, between one image and the answer."""
        return int(self.max_positions) - self.prefix - self.card["max_new_tokens"]

    def most_tokens(self, limit: int) -> int:
        """Return how many tokens an answer may be asked to have.

        That is half of what is behind the image, and the card's own number in any case.

        Args:
            limit: No more than this, unless the card says more.
        """
        own = self.card["max_new_tokens"]
        return max(own, min(limit, (self.room + own) // 2))

    def prompt(
        self,
        question: str,
        history: Sequence[Turn] = (),
        max_new_tokens: int | None = None,
        images: int = 1,
    ) -> list[int]:
        """Return the token ids after which the answer to a question is written.

        Args:
            question: What to answer.
            history: See `Assistant.stream`.
            max_new_tokens: See `Assistant.stream`; a longer answer leaves less room.
            images: How many images the conversation is about.

        Raises:
            ModelError: See `Assistant.stream`.
        """
        if not images and not self.text_only:
            raise ModelError(
                "this assistant was never trained on texts alone",
                "ask about an image, or train one with conversations.text_only=keep",
            )
        if images > self.most_images:
            raise ModelError(
                f"{images} images, but this assistant has learned to see {self.most_images} at a "
                "time",
                "ask about fewer",
            )
        if not question.strip():
            raise ModelError("the question is empty", "ask something about the image")
        if not all(map(is_text, (question, *chain.from_iterable(history)))):
            raise ModelError("the question has an incomplete character", "write it as UTF-8 text")
        longer = 0 if max_new_tokens is None else max_new_tokens - self.card["max_new_tokens"]
        room = self.room - max(images - 1, 0) * self.prefix - longer
        return asked_ids(self.template, question, history, images, room)
