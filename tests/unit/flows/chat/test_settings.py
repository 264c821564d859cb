"""How an answer is written: the limits hold whatever a page or a program sends."""

import math
from pathlib import Path
from typing import Any

import pytest

from flows.chat.errors import ChatError
from flows.chat.history import Subject
from flows.chat.limits import Limits
from flows.chat.models import only
from flows.chat.settings import settings_for
from flows.chat.talk import Talk
from model.assistant import Assistant
from model.generation_configs import BeamConfig, GreedyConfig, TopPConfig
from tests.support.tiny_bundle import image

LIMITS = Limits(answer_tokens=40, beams=3, temperature=1.5)


@pytest.fixture
def talk(assistant: Assistant, tmp_path: Path) -> Talk:
    (tmp_path / "red.png").write_bytes(image())
    return Talk(only(assistant), tmp_path, LIMITS)


def answer(talk: Talk, **wanted: Any) -> str:
    settings = settings_for(talk.models.get(), talk.limits, **wanted)
    *_, last = talk.answer(
        "What colour?", [str(talk.folder / "red.png")], Subject(), settings=settings
    )
    return last.text


def test_where_nothing_is_chosen_the_answer_is_the_one_of_ask(talk: Talk) -> None:
    settings = settings_for(talk.models.get(), LIMITS)
    assert settings.decoding == GreedyConfig()
    assert answer(talk) == talk.models.get().ask(image(), "What colour?")


def test_a_temperature_draws_with_the_seed_and_leaves_beams_out(talk: Talk) -> None:
    settings = settings_for(talk.models.get(), LIMITS, temperature=1.5, beams=3, seed=7)
    assert settings.decoding == TopPConfig(top_p=1.0, temperature=1.5, seed=7)
    answers = [answer(talk, temperature=1.5, seed=seed) for seed in (7, 7, 8)]
    assert answers[0] == answers[1]
    assert answers[0] not in (answers[2], answer(talk))


def test_without_a_seed_each_answer_is_drawn_anew(talk: Talk) -> None:
    seeds = {settings_for(talk.models.get(), LIMITS, temperature=1.0).seed for _ in range(5)}
    assert len(seeds) == 5


def test_beams_and_the_longest_answer_are_those_of_generation(talk: Talk) -> None:
    settings = settings_for(talk.models.get(), LIMITS, beams=3)
    assert settings.decoding == BeamConfig(beams=3, length_penalty=1.0)
    searching = Assistant(talk.models.get().folder)
    searching.card["beams"] = 3
    assert answer(talk, beams=3) == searching.ask(image(), "What colour?") != answer(talk)
    searching.card |= {"beams": 1, "max_new_tokens": 30}
    long = answer(talk, tokens=30)
    assert long == searching.ask(image(), "What colour?")
    assert long.startswith(answer(talk, tokens=3))
    assert len(long) > len(answer(talk)) > len(answer(talk, tokens=3))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"temperature": 1.6}, "The temperature must be a number from 0 to 1.5."),
        ({"temperature": -0.1}, "from 0 to 1.5"),
        ({"temperature": math.nan}, "from 0 to 1.5"),
        ({"temperature": "hot"}, "from 0 to 1.5"),
        ({"tokens": 41}, "The longest answer in tokens must be a number from 1 to 40."),
        ({"tokens": 0}, "from 1 to 40"),
        ({"tokens": 2.5}, "must be a whole number from 1 to 40"),
        ({"beams": 4}, "The number of beams must be a number from 1 to 3."),
        ({"beams": True}, "from 1 to 3"),
        ({"beams": [1]}, "from 1 to 3"),
        ({"seed": -1}, "The seed must be a number from 0 to 2,147,483,647."),
        ({"seed": "x"}, "The seed must be"),
    ],
)
def test_what_is_outside_the_limits_is_refused(talk: Talk, wanted: dict, words: str) -> None:
    with pytest.raises(ChatError) as caught:
        settings_for(talk.models.get(), LIMITS, **wanted)
    assert words in str(caught.value)


def test_an_answer_leaves_room_for_the_question_and_the_cards_own_length_is_always_allowed(
    talk: Talk,
) -> None:
    assistant = talk.models.get()
    behind = assistant.room + assistant.card["max_new_tokens"]
    assert assistant.most_tokens(10**6) == behind // 2
    assert assistant.most_tokens(1) == assistant.card["max_new_tokens"]
    longest = Talk(talk.models, talk.folder, Limits(answer_tokens=10**6))
    assert answer(longest, tokens=behind // 2)
    words = "why " * (behind // 2 + 10)
    with pytest.raises(ChatError, match="too long"):
        list(
            longest.answer(
                words[:900],
                [str(talk.folder / "red.png")],
                Subject(),
                settings=settings_for(assistant, longest.limits, tokens=behind // 2),
            )
        )
