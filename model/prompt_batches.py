"""Tokenizing many examples at once, with exactly the tokens that a template gives one by one."""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from tokenizers import Tokenizer

from model.prompt import PromptTemplate
from model.word_tokenizer import Ids, WordTokenizer, splits_at_blanks

_OWN_THREADS = "TOKENIZERS_PARALLELISM"
_AT_ONCE = 1024  # texts; each of these jobs holds one tokenizer


@dataclass
class _Remembering:
    """Stands for a tokenizer: remembers which texts are asked for, and later knows their ids."""

    tokenizer: Tokenizer
    known: dict[str, Ids] = field(default_factory=dict)
    asked: dict[str, None] | None = None  # while they are remembered

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        """Return the ids of a text, as the tokenizer does; none while texts are remembered."""
        if self.asked is not None:
            self.asked[text] = None
            return _NONE
        encoding = self.known.get(text)
        return encoding or self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


_NONE = Ids([])


@contextmanager
def one_thread_per_tokenizer() -> Generator[None]:
    """Keep tokenizers from starting threads of their own, as `BatchTemplate` brings some."""
    before = os.environ.get(_OWN_THREADS)
    os.environ[_OWN_THREADS] = "false"
    try:
        yield
    finally:
        del os.environ[_OWN_THREADS]
        if before is not None:
            os.environ[_OWN_THREADS] = before


class BatchTemplate:
    """A template that encodes the texts of many examples, word by word where its tokenizer allows.

    Otherwise it encodes them together on several threads, with a tokenizer of its own for each:
    threads that share one wait for its cache of words, and then two are slower than one.
    """

    def __init__(self, template: PromptTemplate, executor: Executor, threads: int) -> None:
        by_word = splits_at_blanks(template.tokenizer)
        kind = WordTokenizer if by_word else _Remembering
        self._standing = kind(template.tokenizer)
        self.template = replace(template, tokenizer=cast("Tokenizer", self._standing))
        self._executor = executor
        self._free = [] if by_word else [_copy(template.tokenizer) for _ in range(threads)]

    def prepare(self, make: Callable[[], object]) -> None:
        """Encode every text that `make` asks `template` for, so that asking again costs nothing.

        What was encoded before is forgotten. Word by word nothing has to be prepared.
        """
        if isinstance(self._standing, WordTokenizer):
            return
        self._standing.known, self._standing.asked = {}, {}
        try:
            make()
            texts = [*self._standing.asked]
        finally:
            self._standing.asked = None
        jobs = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
        encoded = self._executor.map(self._encode, jobs)
        ids = (each for some in encoded for each in some)
        self._standing.known = dict(zip(texts, map(Ids, ids), strict=True))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = self._free.pop()
        try:
            encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        finally:
            self._free.append(tokenizer)


def _copy(tokenizer: Tokenizer) -> Tokenizer:
    made = Tokenizer.from_str(tokenizer.to_str())
    made.encode_special_tokens = tokenizer.encode_special_tokens
    return made
