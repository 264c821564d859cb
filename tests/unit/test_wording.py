import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rendering import scene_indices
from pipeline.scenes import COLOURS, QUADRANTS, SHAPES, Scene, SceneObject, make_scene
from pipeline.wording import CONVERSATIONS_PER_IMAGE, KINDS, NUMBERS, captions, conversations

SEED = 5
scenes = st.builds(make_scene, st.integers(0, 2**32), st.integers(0, 10**6))


def points(text: str) -> bool:
    return text.strip().lower().startswith("the ") and " is " in text


@given(scenes)
def test_captions_are_short_and_differ(scene: Scene) -> None:
    texts = captions(scene)
    assert len({text.strip().removesuffix(".").lower() for text in texts}) == 5
    for text in texts:
        assert len(text.split()) <= 20
        assert len(text) < 120


@given(scenes)
def test_three_captions_name_every_object_in_reading_order(scene: Scene) -> None:
    listing = [text for text in captions(scene) if not points(text)]
    assert len(listing) == 3
    for text in listing:
        words = re.findall("[a-z]+", text.lower())
        assert [w for w in words if w in COLOURS] == [item.colour for item in scene.objects]
        assert [w for w in words if w in SHAPES] == [item.shape for item in scene.objects]


@given(scenes)
def test_two_captions_point_at_each_object_and_tell_what_is_true_of_it_alone(scene: Scene) -> None:
    pointing = [text for text in captions(scene) if points(text)]
    assert len(pointing) == 2
    for text in pointing:
        statements = [part.split(" is ") for part in text.strip().lower().split(" and ")]
        meant = [only_object(scene, pointer) for pointer, _ in statements]
        assert sorted(item.quadrant for item in meant) == [o.quadrant for o in scene.objects]
        for item, (pointer, told) in zip(meant, statements, strict=True):
            facts = {item.colour, item.shape, item.place}
            (fact,) = [fact for fact in facts if fact in told]
            assert fact not in pointer


def only_object(scene: Scene, words: str) -> SceneObject:
    """The one object that has every property the words name."""
    named = {w for w in (*COLOURS, *SHAPES, *QUADRANTS) if w in words}
    (only,) = [o for o in scene.objects if named and named <= {o.colour, o.shape, o.place}]
    return only


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
    if "where" in words or "corner" in words:
        return only.place
    return only.colour if "colour" in words else only.shape


@given(scenes)
def test_every_question_has_exactly_one_right_answer(scene: Scene) -> None:
    for talk in conversations(scene):
        for turn in talk:
            assert turn.answer == answer(scene, turn.question)


@given(scenes)
def test_conversations_have_two_or_three_turns_and_differ(scene: Scene) -> None:
    talks = conversations(scene)
    assert len(set(talks)) == len(talks) == CONVERSATIONS_PER_IMAGE
    for talk in talks:
        assert len({turn.kind for turn in talk}) == len(talk)
        assert len(talk) == 2 + (talk[0].kind == "count")


@given(scenes.filter(lambda scene: len(scene.objects) == 1))
def test_no_answer_about_a_single_object_stands_in_the_earlier_turns(scene: Scene) -> None:
    for talk in conversations(scene):
        told = ""
        for turn in talk:
            assert turn.answer.removesuffix(".").lower() not in told or turn.kind == "presence"
            told += f" {turn.question} {turn.answer}".lower()


def test_absent_things_are_absent_and_near_misses_if_they_have_a_colour() -> None:
    coloured = plain = 0
    for index in range(400):
        scene = make_scene(SEED, index)
        for turn in (t for talk in conversations(scene) for t in talk if t.answer == "no"):
            colour, shape = turn.question.removesuffix("?").split()[-2:]
            looks = [(item.colour, item.shape) for item in scene.objects]
            if colour in COLOURS:
                assert (colour, shape) not in looks
                assert any(colour == look[0] or shape == look[1] for look in looks)
                coloured += 1
            else:
                assert all(shape != look[1] for look in looks)
                plain += 1
    assert coloured > 50
    assert plain > 50


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
    assert kinds["presence"] <= 0.15 * kinds.total()


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
