"""Which question a conversation asks."""

from typing import Any

import pytest
from pydantic import ValidationError

from flows.serve.errors import RequestError
from flows.serve.limits import ServeLimits
from flows.serve.messages import Asked, ChatBody, asked_by

LIMITS = ServeLimits(images=2, messages=6, characters=100)


def said(role: str, *parts: str) -> dict[str, Any]:
    """A message; a part that begins with data: is an image."""
    content = [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith("data:")
        else {"type": "text", "text": part}
        for part in parts
    ]
    return {"role": role, "content": content}


def asked(*messages: dict[str, Any]) -> Asked:
    return asked_by(ChatBody.model_validate({"messages": messages}).messages, LIMITS)


def test_a_question_is_about_the_newest_images() -> None:
    first = [said("user", "data:a", "What?"), {"role": "assistant", "content": "A cat."}]
    assert asked(*first, said("user", "Sure?")) == Asked("Sure?", [("What?", "A cat.")], ["data:a"])
    assert asked(*first, said("user", "And this?", "data:b")) == Asked("And this?", [], ["data:b"])


def test_several_images_stand_between_the_texts() -> None:
    found = asked(said("user", "Is", "data:a", "like", "data:b", "?"))
    assert found == Asked("Is\n<image>\nlike\n<image>\n?", [], ["data:a", "data:b"])


def test_system_messages_come_before_the_first_question() -> None:
    found = asked({"role": "system", "content": "Be brief."}, said("user", "What?", "data:a"))
    assert found.question == "Be brief.\nWhat?"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([said("assistant", "Hello")], "must alternate"),
        ([said("user", "a"), said("user", "b")], "must alternate"),
        ([said("user", "a"), said("assistant", "b")], "end with user's"),
        ([{"role": "system", "content": "a"}], "must alternate"),
        ([said("user", "a"), said("assistant", "data:x"), said("user", "c")], "cannot have images"),
        ([said("user", "data:a", "data:b", "data:c")], "at most 2 images"),
        ([said("user", "a" * 101)], "at most 100 characters"),
        ([said("user", "a"), said("assistant", "b")] * 3 + [said("user", "c")], "at most 6"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "has no image_url"),
    ],
)
def test_what_cannot_be_asked_is_told(messages: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        asked(*messages)


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": [{"role": "tool", "content": "a"}]},
        {"n": 2},
        {"temperature": 3},
        {"max_tokens": 0},
        {"tools": [{}]},
        {"logprobs": True},
        {"stop": 5},
    ],
)
def test_other_bodies_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatBody.model_validate({"messages": [said("user", "a")], **wrong})
