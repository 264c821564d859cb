"""Pieces of an answer: nothing that was sent changes later, and stops are never part of it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.inference.answer import Answer, Piece


def decode(ids: Sequence[int]) -> str:
    """Each token is a byte; outer blanks are dropped, as the tokenizer's template does."""
    return bytes(ids).decode("utf-8", "replace").strip()


def pieces(text: str, stops: Sequence[str], longest: int = 1000) -> list[Piece]:
    """Let an answer be written byte by byte, as long as it wants more."""
    found: list[Piece] = []
    answer = Answer(decode, longest, stops, found.append)
    for token in text.encode()[:longest]:
        if not answer.take(token):
            break
    answer.take(None)
    return found


@given(st.text(min_size=1), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_the_pieces_are_the_text_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    found = pieces(text, stops)
    whole = text.strip()
    said = "".join(piece.text for piece in found)
    assert [piece.reason for piece in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1].reason == "stop"
    if not any(stop in whole for stop in stops):
        assert said == whole
    else:
        assert whole.startswith(said)
        assert not any(stop in said for stop in stops)


def test_a_character_of_several_bytes_is_sent_whole() -> None:
    assert "\ufffd" not in "".join(piece.text for piece in pieces("naïve 中文", []))
    assert "".join(piece.text for piece in pieces("naïve 中文", [])) == "naïve 中文"


@pytest.mark.parametrize(("longest", "reason"), [(3, "length"), (4, "length"), (5, "stop")])
def test_an_answer_that_is_cut_says_so(longest: int, reason: str) -> None:
    assert pieces("word", [], longest)[-1].reason == reason


def test_an_answer_that_nobody_waits_for_ends() -> None:
    answer = Answer(decode, 9, [], lambda _: None)
    assert answer.take(65)
    answer.leave()
    assert not answer.take(65)
