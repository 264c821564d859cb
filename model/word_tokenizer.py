"""Tokenizing a text word by word, where that gives the tokens of the whole text.

Most of a tokenizer's time goes into finding the words of a text, and into words that it has seen
thousands of times. GPT-2's pre-tokenizer (Radford et al. 2019), which Phi-2 and SmolLM2 use too,
cuts a text before each single blank, and no token reaches across a cut. So a text's tokens are
those of its words, each with the blank before it, and the tokens of a word are remembered.
"""

import json
from typing import Any, NamedTuple

from tokenizers import Tokenizer

_MOST = 1 << 18  # words that are remembered: some 40 MB


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
        if len(self) >= _MOST:
            self.clear()
        ids = self[word] = self._tokenizer.encode(self._before + word, add_special_tokens=False).ids
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

    That is so for a byte-level BPE with GPT-2's pattern, also behind one that takes digits apart or
    behind NFC, and with added tokens that no single blank is a part of. Of other patterns it is
    not known.
    """
    described = json.loads(tokenizer.to_str())
    before = described["pre_tokenizer"] or {"type": None}
    *others, last = before.get("pretokenizers") or [before]
    has_pattern = last["type"] == "ByteLevel" and last["use_regex"] and not last["add_prefix_space"]
    normalizer = described["normalizer"] or {"type": "NFC"}
    added = described["added_tokens"]
    if tokenizer.encode_special_tokens:  # then control tokens are not looked for in texts
        added = [token for token in added if not token["special"]]
    return (
        described["model"]["type"] == "BPE"
        and normalizer["type"] == "NFC"
        and all(each["type"] == "Digits" for each in others)
        and bool(has_pattern)
        and tokenizer.truncation is None
        and tokenizer.padding is None
        and all(map(_keeps_blanks, added))
    )


def _keeps_blanks(added: dict[str, Any]) -> bool:
    """Return whether an added token is found neither across a single blank nor beside one."""
    text = added["content"]
    only_blanks = text.isspace() and len(text) > 1  # at least two stand in a row
    return not (added["lstrip"] or added["rstrip"]) and (" " not in text or only_blanks)
