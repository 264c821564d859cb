"""VQA accuracy: the challenge's normalizer and its leave-one-out rule, as in lmms-eval 0.7.3.

Source: Antol et al. 2015, *VQA: Visual Question Answering*. The published scripts differ in one
point: if all people gave the same answer, the challenge's own (GT-Vision-Lab/VQA) normalizes
nothing, so "Yes." is wrong where ten people said "yes". lmms-eval, with which such scores are
reported today, normalizes prediction and answers in every case; so does this module. The
challenge's quirks are kept, because scores must be comparable to published ones: a punctuation mark
that touches a blank anywhere vanishes everywhere, others become a blank; "none" is 0. It ignores
Chinese and Japanese punctuation, which becomes a blank here.
"""

import re
from collections.abc import Sequence

NEEDED = 3  # people who must agree with an answer for it to count in full
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_WIDE_MARKS = str.maketrans(
    dict.fromkeys(
        "\u3002\u3001\uff0c\uff0e\uff01\uff1f\uff1a\uff1b\u300c\u300d\u300e\u300f\uff08\uff09\u300a\u300b",
        " ",
    )
)
_LONE_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")  # the challenge's own look-ahead, odd as it is
_PERIODS = 32  # periods removed, at most
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1
    )
}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
'ow's'at
"""  # a list literal of these would be 90 lines


def _without_one_apostrophe(word: str) -> list[str]:
    places = [place for place, letter in enumerate(word) if letter == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


_CONTRACTIONS = {key: word for word in _CONTRACTED.split() for key in _without_one_apostrophe(word)}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # the wrong way round, as published


def normalize_answer(text: str) -> str:
    """Return an answer as the challenge compares it: without marks, articles and number words."""
    text = text.replace("\n", " ").replace("\t", " ").translate(_WIDE_MARKS).strip()
    cleaned = text
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _MARKS:
        touches = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if touches or in_number else " ")
    cleaned = _LONE_PERIOD.sub("", cleaned, count=_PERIODS)
    words = [_NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return how far people agree with an answer, from 0 to 1.

    With several people's answers it is the challenge's accuracy: each person is left out once,
    and a prediction that n of the others gave counts min(1, n / 3). With one answer, as in
    LLaVA-Instruct, it is 1 if the two are the same after normalization.
    """
    said = normalize_answer(prediction)
    same = [normalize_answer(answer) == said for answer in answers]
    if len(same) == 1:
        return float(same[0])
    agreed = sum(same)
    return sum(min(1.0, (agreed - own) / NEEDED) for own in same) / len(same)


def answer_type(answer: str) -> str:
    """Return `yes_no`, `number` or `other`, the three groups in which VQA figures are quoted."""
    words = normalize_answer(answer).split()
    if words[:1] in (["yes"], ["no"]):
        return "yes_no"
    return "number" if len(words) == 1 and words[0].isdigit() else "other"
