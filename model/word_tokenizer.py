"""Tokenizing a text word by word, where that gives the tokens of the whole text.

Most of a tokenizer's time goes into finding the words of a text, and into words that it has seen
thousands of times. The byte-level BPEs of GPT-2, Phi-2, SmolLM2, Qwen2 and Llama 3 cut a text
before each single blank between words, and no token reaches across a cut. So a text's tokens are
those of its words, each with the blank before it, and the tokens of a word are remembered.
"""

import json
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from model.byte_level import byte_level_split

# Words that are remembered, in some 80 MB. Longer ones are links, or sentences of a script without
# blanks.
_MOST, _LONGEST = 1 << 18, 32


class Ids(NamedTuple):
    """The part of a tokenizer's encoding that templates use."""

    ids: list[int]


class _Words(dict[str, list[int]]):
    """The ids of words, each behind the same text."""

    def __init__(self, tokenizer: Tokenizer, before: str) -> None:
        super().__init__()
        self._tokenizer, self._before = tokenizer, before

    def __missing__(self, word: str) -> list[int]:
        if word.strip() != word or not word:
            raise KeyError(word)  # where white space meets a blank, the cut is elsewhere
        ids = self._tokenizer.encode(self._before + word, add_special_tokens=False).ids
        if len(word) <= _LONGEST:
            if len(self) >= _MOST:
                self.clear()
            self[word] = ids
        return ids


class WordTokenizer:
    """Stands for a tokenizer of which `splits_at_blanks` is true, and gives the same ids.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._first, self._later = _Words(tokenizer, ""), _Words(tokenizer, " ")

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        """Return the ids of a text, as `Tokenizer.encode` does."""
        first, *later = text.split(" ")
        known = self._later
        try:
            ids = [*self._first[first]] if first else []
            for word in later:
                ids += known[word]
        except KeyError:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return Ids(ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def splits_at_blanks(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer is known to cut texts before each single blank between words.

    So do those of `model.byte_level`, if no added token reaches across a blank. Of any other it is
    not known.
    """
    stated = json.loads(tokenizer.to_str())
    added = stated["added_tokens"]
    if tokenizer.encode_special_tokens:  # then control tokens are not looked for in texts
        added = [token for token in added if not token["special"]]
    return (
        byte_level_split(stated) != ""
        and stated["model"]["dropout"] is None
        and tokenizer.truncation is None
        and tokenizer.padding is None
        and all(map(_keeps_blanks, added))
    )


def _keeps_blanks(added: dict[str, Any]) -> bool:
    """Return whether an added token is found neither across a single blank nor beside one."""
    text = added["content"]
    only_blanks = text.isspace() and len(text) > 1  # at least two stand in a row
    return not (added["lstrip"] or added["rstrip"]) and (" " not in text or only_blanks)
