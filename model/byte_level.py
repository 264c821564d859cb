"""The ways in which byte-level BPEs split text into pieces before they look for tokens.

There are four in use among the language models here; they are known by llama.cpp's names.
"""

from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLITS = {
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
        "llama-bpe"
    ),
}


def byte_level_split(stated: dict[str, Any]) -> str:
    """Return the name of how a tokenizer splits text, "" where it is none that is known here.

    Args:
        stated: The content of `tokenizer.json`.
    """
    bpe, before = stated["model"], stated.get("pre_tokenizer") or {}
    normalized = (stated.get("normalizer") or {"type": "NFC"})["type"]
    if bpe["type"] != "BPE" or bpe.get("byte_fallback") or normalized != "NFC":
        return ""
    return _split_of(before.get("pretokenizers", [before]))


def _split_of(steps: list[dict[str, Any]]) -> str:
    *first, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return ""
    by_regex = last.get("use_regex", True)
    match first:
        case [] if by_regex:
            return "gpt-2"
        case [{"type": "Digits", "individual_digits": True}] if by_regex:
            return "smollm"
        case [{"type": "Split", "behavior": "Isolated", "pattern": {"Regex": pattern}}]:
            plain = not first[0].get("invert") and not by_regex
            start = f"{_CONTRACTIONS}|"
            if plain and pattern.startswith(start):
                return _SPLITS.get(pattern.removeprefix(start), "")
    return ""
