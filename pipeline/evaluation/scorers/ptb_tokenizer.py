"""Penn Treebank tokens of a caption, as the Java tokenizer behind published scores makes them.

Caption scores are quoted after Stanford's ``PTBTokenizer -preserveLines -lowerCase`` (CoreNLP
3.4.1, called by coco-caption and pycocoevalcap). A plain whitespace split moves CIDEr by a third,
so the same tokens are needed, without Java. The rules below were written from the observed
behaviour of that program; with them 53,813 different COCO captions give its exact tokens.

One rule cannot be copied: Java reads all captions as one stream, so whether the last full stop
of a caption belongs to an abbreviation ("Morgan Rd.") depends on the first word of the *next*
caption. Here every caption is followed by a new sentence, as in most COCO captions.
"""

import re
import unicodedata
from typing import Final

from pipeline.data.spaceless import pieces

# coco-caption drops exactly these strings. Brackets are in its list in capitals but arrive in
# lower case, so "-lrb-" survives, as do runs such as "!!!". Published scores include that.
_DROPPED: Final = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
PUNCTUATION: Final = frozenset(_DROPPED.split())

# Abbreviations that keep their dot.
_TITLES = (  # the dot never ends a sentence as well
    "adm asst assoc attys? ave brig capt cf cie cmdr col comdr cpl dept det drs? elec ft gen govs?"
    " hon lieut lt maj messrs mfg mlle mme mrs? ms mt natl pfc pres profs? pvt reps? rev sens? sgt"
    " spc ste? supts? treas vs"
)
_ENDERS = (  # at the end of a sentence the dot is written twice: "etc. A" is "etc." "." "A"
    "ala? apr ariz assn aug bancorp bhd bldg blvd bros calif colo conn corp cos? ct dak dec"
    r" (?:ed|ph)\.d esq est etc ext feb fla fri ga inc ind intl jan jr jul jun kans? ky ltd mar md"
    " mich minn mon? mont neb nev nov oct okla penn plc rd rt sept? sq sr sys tel tenn thu thurs"
    " tues? univ va vt wed wisc? wyo"
)
_STATES = "ark az del ill la mass miss ore pa tex wash"  # the same, but only when capitalised
_NUMBERED = "art ca figs? nos? op pp prop"  # only before a figure: "no. 5"
# Words that, capitalised, end the sentence before them after an acronym or a single letter.
_OPENERS = (
    "A AN According After As At But He Her Here However If In It Last Many Mr Ms Now Once One Other"
    " Our She Since So Some Such THERE THIS That The An Their Then There These They This We What"
    " When While Yet You"
)


def _any_of(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


# A letter or digit with its combining accents, in Hindi or Arabic with its vowels. Fractions and
# powers are digits to Python, not here.
_ACCENTS = "".join(chr(n) for n in range(0x300, 0x1E00) if unicodedata.category(chr(n))[0] == "M")
_CHAR = rf"(?:[^\W_\u00b2\u00b3\u00b9\u00bc-\u00be\u2153\u2154][{_ACCENTS}]*)"
_NOT_IN_WORD = r"(?![^\W_]|-\w)"  # after an abbreviation's dot: "rd.dog" is one word
_CAPITALS = " ".join(f"{state.capitalize()} {state.upper()}" for state in _STATES.split())
_ENDER = rf"(?:(?i:{_any_of(_ENDERS)})|{_any_of(_CAPITALS)})"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"  # "D.C" without its last dot
_NEW_SENTENCE = rf"(?:\s*$|\s+{_any_of(_OPENERS)}(?!\w))"
_FUSED = "|".join(
    rf"{word[:3]}(?={word[3:]}(?![\w'-]))"  # each is split after its third letter: "can" "not"
    for word in ("cannot", "gimme", "gonna", "gotta", "lemme", "wanna")
)

# In order of preference: the first pattern that matches at a place wins. The kind says how the
# matched text is written. Apostrophes are ASCII here: ptb_tokens has replaced the others.
_PATTERNS: Final[tuple[tuple[str, str], ...]] = (
    ("plain", rf"(?i:{_FUSED})"),
    # Most tokens of most captions; later patterns would match them too, this is only for speed.
    ("plain", r"[A-Za-z]+(?![^\s,]|,-)|,(?!\d)|\.$"),
    ("joined", r"<[A-Za-z/!][^<>]{0,200}>"),  # a markup tag
    ("joined", r"\d+\s\d+/\d+(?!\w)"),  # "23 3/4"
    ("plain", r"""https?://[^\s<>"|()]*[^\s<>"|().,!?:;'-]"""),
    ("plain", r"[\w.+-]{1,64}@[A-Za-z][\w-]*(?:\.[\w-]+)*|@[A-Za-z_]\w*|\#[A-Za-z]+"),
    # Abbreviations. "dotted" is given a dot, and the dot in the text follows as its own token.
    ("dotted", rf"{_ENDER}(?=\.(?:\s*$|\s+[A-Z]))"),
    ("dotted", rf"{_ACRONYM}(?=\.{_NEW_SENTENCE})"),
    ("plain", rf"(?:{_ENDER}|{_ACRONYM}|(?i:{_any_of(_TITLES)}))\.{_NOT_IN_WORD}"),
    ("plain", rf"[A-Za-z]\.(?!{_NEW_SENTENCE}){_NOT_IN_WORD}"),
    ("plain", rf"(?i:{_any_of(_NUMBERED)})\.(?=\s?\d)"),
    # Contractions.
    ("plain", r"(?i:n't(?!\w)|[a-z]+(?=n't(?!\w)))"),
    ("plain", r"(?i:'t(?=(?:is|was)(?!\w))|y'(?=\w))"),  # "'tis", "y'all"
    ("plain", r"(?i:'(?:s|d|m|ll|re|ve|em|til|cause)(?!\w)|'n(?:'|(?!\w)))"),
    ("plain", r"(?<!\w)'\d(?:\d|0s)(?!\w)"),  # "'90s"
    # Words that keep an apostrophe: "o'clock", "O'Hare", "d'oeuvre", "Ho'ohu".
    ("plain", r"(?:[dlno]|[A-HJ-VXZ])'(?!(?i:re|ve|ll)(?!\w))[A-Za-z]{2,}"),
    ("plain", r"(?i:ma'am|c'mon|ne'er|nor'easter|s'mores|qu'[a-z]+)(?!\w)"),
    ("plain", r"(?i:[a-z]+[aeiouy]'[aeiou][a-z]*)"),
    ("plain", r"[A-Z]+(?:&[A-Z]+)+"),  # "AT&T"; "M&Ms" becomes "m&m s", as in Java
    ("plain", r"(?:A|C|US|HK|NZ)\$"),
    # A full stop without its space joins two words: "it.now".
    ("plain", rf"[A-Za-z]{_CHAR}*(?:(?:[.!?]|[.,]+-)[A-Za-z]{_CHAR}*)+(?:-{_CHAR}+)*"),
    ("plain", r"[+-]?\d*(?:[.,:]\d+)+(?:-[A-Za-z]+)*|[+-]\d+"),  # "1,000.50", "12:30", "3.5-inch"
    ("plain", rf"{_CHAR}+(?:-{_CHAR}+)*\.(?=[,;:])"),  # "food.," keeps its dot
    ("plain", rf"{_CHAR}+(?:[-_\u2010]{_CHAR}+)*(?:/{_CHAR}+(?:-{_CHAR}+)*){{0,2}}"),  # "and/or"
    # Marks.
    ("smiley", r"[:;=]['o-]?[()DPp|](?!\w)"),
    ("``", r'"(?=[A-Za-z0-9$])|\u201c'),
    ("''", r'"|\u201d|&quot;'),
    ("`", r"'(?=[A-Za-z]\S)|\u2018"),
    ("...", r"\.{3,5}|\.(?:\s\.){2,4}|\u2026"),
    ("--", r"-{2,}|[\u2013-\u2015]"),
    ("mark", r"''|``|[!?]+|\*+|\#+|@+|_+|&(?:amp|lt|gt|apos);"),
    ("mark", r"[^\s\x00-\x1f\x7f\u200b-\u200f\ufe00-\ufe0f\ud800-\udfff\U00010000-\U0010ffff]"),
)

_TOKEN: Final = re.compile(rf"\s*+(?:{'|'.join(f'({pattern})' for _, pattern in _PATTERNS)})")
_KINDS: Final = ("", *(kind for kind, _ in _PATTERNS))  # by number of the group that matched

_MARKS: Final = {
    **dict(zip("()[]{}", ["-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"], strict=True)),
    **dict(zip("½¼¾⅓⅔", ["1/2", "1/4", "3/4", "1/3", "2/3"], strict=True)),
    **dict(zip("£€¢", ["#", "$", "cents"], strict=True)),
    **dict(zip(("&amp;", "&lt;", "&gt;", "&apos;"), "&<>'", strict=True)),
}
_BRACKETS: Final = str.maketrans({"(": "-lrb-", ")": "-rrb-"})
_CLEAN: Final = str.maketrans({"\u2019": "'", "\u00ad": "", "\u200b": " ", "\ufeff": " "})


def ptb_tokens(caption: str) -> list[str]:
    """Lower-cased Penn Treebank tokens of a caption, punctuation included.

    Any text is accepted; emoji and control characters give no token. Tokens hold no whitespace
    except the no-break space in "23 3/4" and in markup tags, as in Java.

    Args:
        caption: one caption; line breaks count as spaces.

    Returns:
        The tokens in order: ``"A man's T-shirt."`` gives ``["a", "man", "'s", "t-shirt", "."]``.
    """
    tokens: list[str] = []
    for match in _TOKEN.finditer(caption.translate(_CLEAN).strip()):
        group = match.lastindex or 0
        kind = _KINDS[group]
        tokens.append(match[group] if kind == "plain" else _written(kind, match[group]))
    return [token.lower() for token in tokens]


def tokenize(caption: str) -> list[str]:
    """Tokens of a caption as coco-caption scores them: :func:`ptb_tokens` without punctuation.

    In a caption with characters of a script without blanks (:mod:`pipeline.data.spaceless`), for
    which the Treebank has no words, each such character is a token, and punctuation is dropped.

    Returns:
        The tokens that are not in :data:`PUNCTUATION`; empty for a caption without words.
    """
    parts = pieces(caption)
    if not any(unit for unit, _ in parts):
        return [token for token in ptb_tokens(caption) if token not in PUNCTUATION]
    return [
        token
        for unit, part in parts
        for token in ([part] if unit else ptb_tokens(part))
        if any(map(str.isalnum, token))
    ]


def _written(kind: str, text: str) -> str:
    """How a matched text of this kind appears in the Treebank; other kinds are the spelling."""
    if kind == "joined":
        return re.sub(r"\s", "\u00a0", text)
    if kind == "dotted":
        return f"{text}."
    if kind == "smiley":
        return text.translate(_BRACKETS)
    if kind == "mark":
        return _MARKS.get(text, text)
    return kind
