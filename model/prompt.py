"""Prompts: text is encoded segment by segment, and each token id is marked as a target or not.

Labels are never found by tokenizing a whole text again and counting, and text that people write
never becomes a control token: `<|endoftext|>` typed in a question is plain text. The prefixes of
a template are not typed by people, so control tokens in them are encoded as control tokens.

The first image of a conversation stands in front of all text and is not among the ids. Each
further one is a single `IMAGE` where its prefix belongs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

from tokenizers import Tokenizer

from model.errors import ModelError

MARKER = "<image>"  # in texts of datasets: an image belongs here
# In questions for a template. Half of a surrogate pair is not valid text, so that nobody can write
# it in a dataset or a chat.
IMAGE_MARK = "\udfff"
IMAGE = -1  # among token ids: the prefix of a further image belongs here
Part = tuple[str, int | None]  # text, and its id if it is a control token or an image


def placed(text: str) -> tuple[int, str]:
    """Return how many further images stand in front, and a first question with marks for others.

    Images that a text begins with stand in front of the conversation, as the first one always
    does, wherever the text names it.

    Args:
        text: The first question of a conversation, with a `MARKER` for each of its images.
    """
    leading = re.match(rf"(?:\s*{MARKER})*\s*", text)
    assert leading is not None  # it matches the empty text, too
    count = leading[0].count(MARKER)
    rest = text[leading.end() :] if count else " ".join(text.replace(MARKER, " ", 1).split())
    return max(count - 1, 0), rest.replace(MARKER, IMAGE_MARK)


@dataclass(frozen=True)
class Tokens:
    """Token ids of one example beside their loss mask.

    Attributes:
        input_ids: Ids of all text tokens; the first image's prefix is not among them, a further
            image is `IMAGE`.
        supervised: Whether each id is a target of the loss.
    """

    input_ids: list[int]
    supervised: list[bool]

    def __len__(self) -> int:
        """Return the number of text tokens."""
        return len(self.input_ids)


@dataclass(frozen=True)
class PromptTemplate:
    """The layout of text, the same in training, evaluation and chat.

    A conversation is `opening`, and for each turn `user_prefix question assistant_prefix` (not
    supervised) and ` answer EOS` (supervised), with `between` after each turn but the last. After
    a prefix with control tokens the answer has no blank before it, as in chat templates. A caption
    answers `caption_question`; where that is empty, it is `caption EOS` right after the image, all
    of it supervised.

    Attributes:
        tokenizer: A `tokenizers` tokenizer; its special tokens are switched off for text.
        eos_id: Id that ends every answer.
        user_prefix: Text before a question, control tokens included.
        assistant_prefix: Text between a question and its answer, control tokens included.
        caption_question: The question that every caption answers, or "".
        opening: Text before the first turn, such as a system prompt, control tokens included.
        between: Text between an answer's end and the next turn, control tokens included.
    """

    tokenizer: Tokenizer
    eos_id: int
    user_prefix: str
    assistant_prefix: str
    caption_question: str = ""
    opening: str = ""
    between: str = ""

    @classmethod
    def load(
        cls,
        folder: Path,
        eos_id: int,
        user_prefix: str,
        assistant_prefix: str,
        caption_question: str = "",
        opening: str = "",
        between: str = "",
    ) -> "PromptTemplate":
        """Read `tokenizer.json` from a folder in the ordinary Hugging Face layout.

        Raises:
            ModelError: The folder has none.
        """
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"{folder} has no tokenizer.json, so text cannot be tokenized")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        prefixes = user_prefix, assistant_prefix
        return cls(tokenizer, eos_id, *prefixes, caption_question, opening, between)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without control tokens and outer blanks."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def caption(self, caption: str) -> Tokens:
        """Return a caption as an example of pretraining."""
        prompt = self.caption_prompt
        ids = [*self.captioned(caption), self.eos_id]
        return Tokens([*prompt, *ids], [False] * len(prompt) + [True] * len(ids))

    @property
    def caption_prompt(self) -> list[int]:
        """The ids after which the model is to write a caption."""
        return self.question(self.caption_question) if self.caption_question else []

    def captioned(self, text: str) -> list[int]:
        """Return the ids of a caption after its prompt, without the end."""
        return self.answer(text) if self.caption_question else self.encode(text)

    def conversation(self, turns: Sequence[tuple[str, str]], more: int = 0) -> Tokens:
        """Return a conversation of (question, answer) turns as an example of finetuning.

        Args:
            turns: The turns; a question has an `IMAGE_MARK` where a further image belongs.
            more: Further images in front of the conversation.
        """
        tokens = Tokens([IMAGE] * more, [False] * more)
        for number, (question, answer) in enumerate(turns):
            asked = self._asked(question, is_first=number == 0)
            answered = [*self.answer(answer), self.eos_id]
            tokens.input_ids.extend(asked + answered)
            tokens.supervised.extend([False] * len(asked) + [True] * len(answered))
        return tokens

    def fitting(
        self, turns: Sequence[tuple[str, str]], limit: int, more: int = 0
    ) -> tuple[int, Tokens]:
        """Return how many first turns fit into `limit` tokens, at least one, and their tokens."""
        tokens = self.conversation(turns, more)
        while len(tokens) > limit and len(turns) > 1:
            turns = turns[:-1]
            tokens = self.conversation(turns, more)
        return len(turns), tokens

    def question(
        self, question: str, history: Sequence[tuple[str, str]] = (), more: int = 0
    ) -> list[int]:
        """Return the ids after which the model is to write an answer; see `conversation`."""
        before = self.conversation(history, more).input_ids
        return before + self._asked(question, is_first=not history)

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer after its prefix, without the end."""
        return self.encode(f"{self._blank}{text}")

    @cached_property
    def _controls(self) -> dict[str, int]:
        """The tokenizer's control tokens, by their text."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    @cached_property
    def _blank(self) -> str:
        """Text between the assistant's prefix and an answer."""
        return "" if any(number is not None for _, number in self._closing) else " "

    @cached_property
    def _closing(self) -> list[Part]:
        return self._parts(self.assistant_prefix)

    @cached_property
    def _first_opening(self) -> list[Part]:
        return self._parts(self.opening + self.user_prefix)

    @cached_property
    def _later_opening(self) -> list[Part]:
        return self._parts(self.between + self.user_prefix)

    def _parts(self, prefix: str) -> list[Part]:
        """Return a prefix cut into control tokens, each with its id, and the text between them."""
        texts = [prefix]
        if self._controls:
            pattern = "|".join(map(re.escape, sorted(self._controls, key=len, reverse=True)))
            texts = [part for part in re.split(f"({pattern})", prefix) if part]
        return [(text, self._controls.get(text)) for text in texts]

    def _asked(self, question: str, *, is_first: bool) -> list[int]:
        """Return the ids of a question between its prefixes, after the text before its turn.

        Texts without a control token between them are encoded as one, so that they are split into
        the tokens that the language model knows.
        """
        parts = [*(self._first_opening if is_first else self._later_opening)]
        for number, text in enumerate(question.split(IMAGE_MARK)):
            parts += [(IMAGE_MARK, IMAGE)] * (number > 0) + [(text, None)]
        parts += self._closing
        ids: list[int] = []
        for is_text, run in groupby(parts, key=lambda part: part[1] is None):
            if is_text:
                ids += self.encode("".join(text for text, _ in run))
            else:
                ids += [number for _, number in run if number is not None]
        return ids

    def ask(self, question: str) -> str:
        """Return a question as text between its two prefixes."""
        return f"{self.user_prefix}{question}{self.assistant_prefix}"
