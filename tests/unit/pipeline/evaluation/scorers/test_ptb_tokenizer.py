"""The tokens of published caption scores. Every literal is what the Java tokenizer answers."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.data.spaceless import pieces
from pipeline.evaluation.scorers.ptb_tokenizer import PUNCTUATION, ptb_tokens, tokenize


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's T-shirt isn't red.", "a man 's t-shirt is n't red ."),
        ("They can't, won't and DON'T", "they ca n't , wo n't and do n't"),
        ("I'm sure she'll say they've", "i 'm sure she 'll say they 've"),
        ("a girls' soccer game", "a girls ' soccer game"),
        ("gonna gotta wanna cannot gimme", "gon na got ta wan na can not gim me"),
        ("a gonna-be pilot cannots", "a gonna-be pilot cannots"),
        ("'tis y'all", "'t is y' all"),
        ("ten o'clock at O'Hare", "ten o'clock at o'hare"),
        ("corner of Ho'ohu and Pe'e", "corner of ho'ohu and pe'e"),
        ("Jack o' lantern", "jack o ' lantern"),
        ("rock 'n' roll of the '90s and 1950's", "rock 'n' roll of the '90s and 1950 's"),
        ('it says "Don\'t" and "stop."', "it says `` do n't '' and `` stop . ''"),
        ('it says" i love "', "it says '' i love ''"),
        ("a 'no parking' sign", "a ` no parking ' sign"),
        ("don\u2019t \u201cstop\u201d\u2026", "do n't `` stop '' ..."),
    ],
)
def test_apostrophes_and_quotes(caption: str, tokens: str) -> None:
    assert " ".join(ptb_tokens(caption)) == tokens


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("bus #1 costs $5.50 or 50%", "bus # 1 costs $ 5.50 or 50 %"),
        ("1,000 birds at 12:30pm, or 5:54", "1,000 birds at 12:30 pm , or 5:54"),
        ("a 5'10\" man", "a 5 ' 10 '' man"),
        ("a 3.5-inch, 4x4, 20-year-old", "a 3.5-inch , 4x4 , 20-year-old"),
        ("a 1/2 and 23 3/4 St", "a 1/2 and 23\u00a03/4 st"),
        ("black/white and w/o and / or", "black/white and w/o and / or"),
        ("AT&T, M&Ms and b&w", "at&t , m&m s and b & w"),
        ("see http://a.b/c?d=e.", "see http://a.b/c?d=e ."),
    ],
)
def test_numbers_and_signs(caption: str, tokens: str) -> None:
    assert " ".join(ptb_tokens(caption)) == tokens


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        (
            "the corner of 8th Ave. and Water St. at night",
            "the corner of 8th ave. and water st. at night",
        ),
        ("a sign at Seventh St.", "a sign at seventh st."),
        ("a sign on Morgan Rd.", "a sign on morgan rd. ."),
        ("carrots, etc. all on top", "carrots , etc. all on top"),
        ("at Washington D.C. at night", "at washington d.c. at night"),
        ("at Washington D.C.", "at washington d.c. ."),
        ("a new Wii U.", "a new wii u ."),
        ("j.r. tolkien at 8 a.m. with a T.V", "j.r. tolkien at 8 a.m. with a t.v"),
        ("plane no. 5 and no.", "plane no. 5 and no ."),
        ("looking at it.now.", "looking at it.now ."),
        ("a cat .a dog", "a cat . a dog"),
        ("in the day,.", "in the day , ."),
        ("in the day.,", "in the day. ,"),
        ("in a field..", "in a field . ."),
        ("and... so....", "and ... so ..."),
        ("by the curb?? no!!!", "by the curb ?? no !!!"),
        ("beach--kite - a—b", "beach -- kite - a -- b"),
        ("sushi,with more;less:", "sushi , with more ; less :"),
        ("(x) [y] {z} :)", "-lrb- x -rrb- -lsb- y -rsb- -lcb- z -rcb- :-rrb-"),
    ],
)
def test_dots_and_marks(caption: str, tokens: str) -> None:
    assert " ".join(ptb_tokens(caption)) == tokens


def test_tokenize_drops_what_coco_caption_drops_and_nothing_else() -> None:
    caption = "A \"cat\" -- (fat), isn't it? No!!! Well... yes; 'so'."
    assert tokenize(caption) == (
        # Lower-cased brackets and "!!!" are not in its list, so they stay.
        ["a", "cat", "-lrb-", "fat", "-rrb-", "is", "n't", "it", "no", "!!!", "well", "yes", "so"]
    )


@pytest.mark.parametrize("caption", ["", "  \n", ".", "...", "🙂", "\x00\u200b"])
def test_a_caption_without_words_has_no_tokens(caption: str) -> None:
    assert tokenize(caption) == []


def test_line_breaks_and_runs_of_spaces_are_one_space() -> None:
    assert tokenize(" a  black\ncat\r\n") == ["a", "black", "cat"]


@given(st.text() | st.text(alphabet="aAnt'\"`.,!?-/&#$1 ()<>@_:\n"))
@example("\ud800 a\u0301 İ")
@example("\u2039\r\U00020000")
@example("<" * 500 + "a." * 500 + "'" * 500)
def test_any_text_gives_clean_lower_case_tokens(caption: str) -> None:
    tokens = ptb_tokens(caption)
    assert all(token and token == token.lower() for token in tokens)
    assert not any(set(token) & set(" \t\r\n") for token in tokens)
    if not any(unit for unit, _ in pieces(caption)):  # no character that is a word by itself
        assert tokenize(caption) == [token for token in tokens if token not in PUNCTUATION]


WORDS = "a man's isn't o'clock t-shirt the cat , . 1,000 and/or dogs' cannot"


@given(st.lists(st.sampled_from(WORDS.split()), max_size=12))
def test_tokens_of_tokens_are_the_same_tokens(words: list[str]) -> None:
    once = tokenize(" ".join(words))
    assert tokenize(" ".join(once)) == once


@given(st.lists(st.from_regex(r"[b-z]{3,9}", fullmatch=True), max_size=12))
def test_plain_words_pass_in_any_case(words: list[str]) -> None:
    fused = {"cannot", "gimme", "gonna", "gotta", "lemme", "wanna"}
    plain = [word for word in words if word not in fused]
    assert tokenize(" ".join(plain)) == plain
    assert tokenize(" ".join(plain).upper()) == plain
