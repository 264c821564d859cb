"""The tokenizer of a bundle in a GGUF file: byte-level BPE, by llama.cpp's names.

llama.cpp has a fixed list of ways to split text before BPE, each with a name. One that is not
among those here is refused, because another would silently give other tokens than training had.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import gguf
from tokenizers import Tokenizer

from model.byte_level import byte_level_split
from model.errors import ModelError
from model.exported_template import SEPARATOR, refuse_own_separator


class Vocabulary(NamedTuple):
    """The tokens of a GGUF file.

    Attributes:
        split: llama.cpp's name of how text is split before BPE.
        separator: Id of the learned embedding after an image's patches; the tokens below it are
            the tokenizer's.
        eos: Id that ends an answer.
        chat_template: A Jinja text that writes conversations as the bundle was trained on them.
    """

    split: str
    separator: int
    eos: int
    chat_template: str


def read_vocabulary(lm: Path, eos: int, chat_template: str) -> Vocabulary:
    """Return the vocabulary of a language model's folder.

    Raises:
        ModelError: The tokenizer is not one that llama.cpp knows, or has a token of the
            separator's name.
    """
    tokenizer = Tokenizer.from_file(str(lm / "tokenizer.json"))
    refuse_own_separator(tokenizer)
    split = split_name(json.loads((lm / "tokenizer.json").read_text("utf-8")))
    return Vocabulary(split, 1 + max(tokenizer.get_vocab().values()), eos, chat_template)


def split_name(stated: dict[str, Any]) -> str:
    """Return llama.cpp's name of how a tokenizer splits text.

    Raises:
        ModelError: It is none that is known here.
    """
    # NFC changes only text that is not composed, which llama.cpp leaves as it is.
    name, bpe = byte_level_split(stated), stated["model"]
    # llama.cpp takes whole words out of the vocabulary with this name, and with no other.
    if name and bool(bpe.get("ignore_merges")) == (name == "llama-bpe"):
        return name
    before = stated.get("pre_tokenizer") or {}
    kinds = [step.get("type", "none") for step in before.get("pretokenizers", [before])]
    raise ModelError(
        f"the language model's tokenizer ({bpe['type']}, split by {', '.join(kinds)}) is not one "
        "of the byte-level BPEs that the export to GGUF knows: GPT-2's, SmolLM's, Qwen2's, "
        "Llama 3's"
    )


def write_vocabulary(writer: gguf.GGUFWriter, lm: Path, vocabulary: Vocabulary, rows: int) -> None:
    """Add tokens, merges, special tokens and the chat template."""
    tokenizer = Tokenizer.from_file(str(lm / "tokenizer.json"))
    kinds = gguf.TokenType
    tokens = [(f"[PAD{number}]", kinds.UNUSED) for number in range(rows)]
    for text, number in tokenizer.get_vocab(with_added_tokens=False).items():
        tokens[number] = (text, kinds.NORMAL)
    for number, added in tokenizer.get_added_tokens_decoder().items():
        tokens[number] = (added.content, kinds.CONTROL if added.special else kinds.USER_DEFINED)
    tokens[vocabulary.separator] = (SEPARATOR, kinds.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    # What `ask` never writes either: the separator, and rows without a token.
    never = [n for n, (_, kind) in enumerate(tokens) if kind == kinds.UNUSED]
    writer.add_array("tokenizer.ggml.suppress_tokens", sorted({vocabulary.separator, *never}))
    special = gguf.SpecialVocab(lm, load_merges=True, n_vocab=vocabulary.separator)
    special.special_token_ids["eos"] = vocabulary.eos
    special.special_token_ids.setdefault("bos", vocabulary.eos)
    special.add_special_token = {"bos": False, "eos": False}  # the template has all of them
    special.chat_template = vocabulary.chat_template
    special.add_to_gguf(writer, quiet=True)
