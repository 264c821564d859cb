import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.datasets.shapes.rendering import scene_indices
from pipeline.data.datasets.shapes.scenes import COLOURS, QUADRANTS, SHAPES, Scene, make_scene
from pipeline.data.datasets.shapes.wording import (
    CONVERSATIONS_PER_IMAGE,
    KINDS,
    NUMBERS,
    captions,
    conversations,
)

SEED = 5
scenes = st.builds(make_scene, st.integers(0, 2**32), st.integers(0, 10**6))


def named(text: str) -> list[tuple[str, str]]:
    """Colour and shape of the objects that a text names, in its order."""
    words = re.findall("[a-z]+", text.lower())
    colours, shapes = [w for w in words if w in COLOURS], [w for w in words if w in SHAPES]
    return list(zip(colours, shapes, strict=True))


@given(scenes)
def test_captions_are_short_and_differ(scene: Scene) -> None:
    texts = captions(scene)
    assert len({text.strip().removesuffix(".").lower() for text in texts}) == 5
    for text in texts:
        assert len(text.split()) <= 20
        assert len(text) < 120


@given(scenes)
def test_captions_name_every_object_and_three_in_reading_order(scene: Scene) -> None:
    objects = [(item.colour, item.shape) for item in scene.objects]
    orders = [named(text) for text in captions(scene)]
    assert all(sorted(order) == sorted(objects) for order in orders)
    assert orders.count(objects) >= 3


def test_two_captions_name_their_objects_in_any_order() -> None:
    pairs = [s for s in (make_scene(SEED, i) for i in range(400)) if len(s.objects) == 2]
    turned = sum(
        named(text) != [(item.colour, item.shape) for item in scene.objects]
        for scene in pairs
        for text in captions(scene)
    )
    assert 0.8 < turned / len(pairs) < 1.2  # half of two captions


@given(scenes)
def test_captions_tell_where_an_object_is_beside_its_name(scene: Scene) -> None:
    places = {(item.colour, item.shape): item.place for item in scene.objects}
    for text in captions(scene):
        told = re.findall("|".join(QUADRANTS), text.lower())
        if told:
            assert told == [places[look] for look in named(text)]


def test_captions_have_a_few_of_cocos_quirks() -> None:
    texts = [text for index in range(300) for text in captions(make_scene(SEED, index))]
    for quirk in (
        lambda text: text != text.strip(),
        lambda text: not text.strip().endswith("."),
        lambda text: text.strip()[0].islower(),
    ):
        assert 0.02 < sum(map(quirk, texts)) / len(texts) < 0.12


def answer(scene: Scene, question: str) -> str:
    """The answer, worked out anew from the words of the question."""
    text = question.lower()
    words = re.findall("[a-z]+", text)
    if {"many", "count"} & set(words):
        return NUMBERS[len(scene.objects) - 1].lower()
    shape = next((w for w in words if w in SHAPES), None)
    colour = next((w for w in words if w in COLOURS), None)
    place = next((q for q in QUADRANTS if q in text), None)
    meant = [
        item
        for item in scene.objects
        if shape in (None, item.shape)
        and colour in (None, item.colour)
        and place in (None, item.place)
    ]
    if words[0] in ("is", "do", "does"):
        return "yes" if meant else "no"
    (only,) = meant
    if "describe" in words or "about" in words:
        return f"{only.colour} {only.shape} {only.place}"
    if "where" in words or "corner" in words:
        return only.place
    return only.colour if "colour" in words else only.shape


@given(scenes)
def test_every_question_has_exactly_one_right_answer(scene: Scene) -> None:
    for talk in conversations(scene):
        for turn in talk:
            assert turn.answer == answer(scene, turn.question)


@given(scenes)
def test_conversations_differ_and_the_first_describes_every_object(scene: Scene) -> None:
    talks = conversations(scene)
    assert len(set(talks)) == len(talks) == CONVERSATIONS_PER_IMAGE
    described = [named(turn.answer)[0] for turn in talks[0]]
    assert sorted(described) == sorted((item.colour, item.shape) for item in scene.objects)
    for talk in talks[1:]:
        assert len(talk) == 2 + (talk[0].kind == "count")


@given(scenes.filter(lambda scene: len(scene.objects) > 1))
def test_several_objects_are_asked_about_in_the_same_words(scene: Scene) -> None:
    for talk in conversations(scene):
        asked = [turn for turn in talk if turn.kind != "count"]
        assert len(asked) == len(scene.objects)
        keys = "|".join((*COLOURS, *SHAPES, *QUADRANTS, r"\ban?\b"))
        assert len({" ".join(re.sub(keys, "", t.question).split()) for t in asked}) == 1


@given(scenes.filter(lambda scene: len(scene.objects) == 1))
def test_no_answer_about_a_single_object_stands_in_the_earlier_turns(scene: Scene) -> None:
    for talk in conversations(scene):
        told = ""
        for turn in talk:
            assert turn.answer.removesuffix(".").lower() not in told or turn.kind == "presence"
            told += f" {turn.question} {turn.answer}".lower()


def test_absent_things_are_absent_and_near_misses_if_they_have_colour_and_shape() -> None:
    asked: Counter[str] = Counter()
    for index in range(400):
        scene = make_scene(SEED, index)
        for turn in (t for talk in conversations(scene) for t in talk if t.answer == "no"):
            colour, shape = turn.question.removesuffix("?").split()[-2:]
            looks = [(item.colour, item.shape) for item in scene.objects]
            if shape == "object":
                assert all(colour != look[0] for look in looks)
                asked["colour"] += 1
            elif colour in COLOURS:
                assert (colour, shape) not in looks
                assert any(colour == look[0] or shape == look[1] for look in looks)
                asked["both"] += 1
            else:
                assert all(shape != look[1] for look in looks)
                asked["shape"] += 1
    assert len(asked) == 3
    assert min(asked.values()) > 50


def test_a_blind_guesser_fails() -> None:
    turns = {
        split: [
            turn
            for index in scene_indices(split, images)
            for talk in conversations(make_scene(SEED, index))
            for turn in talk
        ]
        for split, images in (("train2017", 1500), ("val2017", 400))
    }
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for turn in turns["train2017"]:
        seen[turn.question][turn.answer] += 1
    guesses = {question: answers.most_common(1)[0][0] for question, answers in seen.items()}
    val = turns["val2017"]
    assert sum(guesses.get(turn.question) == turn.answer for turn in val) / len(val) <= 0.38
    kinds = Counter(turn.kind for turn in turns["train2017"])
    assert set(kinds) == set(KINDS)
    assert kinds["presence"] <= 0.22 * kinds.total()


@pytest.mark.parametrize(
    ("kind", "answers"),
    [("colour", 8), ("shape", 4), ("position", 4), ("count", 2), ("presence", 2)],
)
def test_answers_are_balanced(kind: str, answers: int) -> None:
    given_answers = Counter(
        turn.answer
        for index in range(1200)
        for talk in conversations(make_scene(SEED, index))
        for turn in talk
        if turn.kind == kind
    )
    assert len(given_answers) == answers
    assert max(given_answers.values()) < 1.25 * given_answers.total() / answers
