"""The texts about a scene: captions in COCO's style, questions in LLaVA-Instruct's.

Invariants: a caption names every object; a question has exactly one right answer in its scene,
and that answer cannot be read off the earlier turns of its conversation.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.data.datasets.shapes.scenes import (
    COLOURS,
    QUADRANTS,
    SHAPES,
    Scene,
    SceneObject,
    generator,
)

KINDS = ("colour", "shape", "position", "count", "presence", "description")
NUMBERS = ("One", "Two", "Three", "Four")
CONVERSATIONS_PER_IMAGE = 4

_PHRASES = {
    "colour": ("What colour is the {key}?", "Tell me the colour of the {key}."),
    "shape": ("What shape is the {key}?", "Tell me the shape of the {key}."),
    "position": ("Where is the {key}?", "In which corner is the {key}?"),
    "count": (
        "How many objects are there?",
        "How many objects do you see?",
        "Count the objects in the picture.",
    ),
    "presence": ("Is there {key}?", "Do you see {key}?", "Does the picture show {key}?"),
    "description": ("Describe the {key}.", "Tell me about the {key}."),
}
# What a conversation asks, in per cent. A fifth of all turns are yes-or-no questions: a guess is
# right half of the time, so with fewer they are learned too late. With 12 % one of eleven training
# runs ended before it had learned them; with 21 % two others had after two fifths of their steps.
_ABOUT_ALL = {"colour": 21, "shape": 21, "position": 21, "presence": 37}
_ABOUT_ONE = {
    ("presence", "position"): 44,
    ("colour", "shape"): 18,
    ("shape", "colour"): 18,
    ("colour", "position"): 5,
    ("position", "colour"): 5,
    ("shape", "position"): 5,
    ("position", "shape"): 5,
}
_COUNT_SHARE = 0.3
# What a yes-or-no question names. Shapes are learned last, so they are asked about most.
_PRESENCE = {("shape",): 3, ("colour",): 1, ("shape", "colour"): 2}
# COCO has two to four times as many of each quirk.
_QUIRK_SHARE = 0.06


@dataclass(frozen=True, slots=True)
class Turn:
    """One question about a scene and its one right answer."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Aim:
    """A question that may be asked about object number `item`: its kind, its key, its answer.

    `fields` are the properties that the key names, in words.
    """

    kind: str
    item: int
    fields: tuple[str, ...]
    key: str
    answer: str

    @property
    def facts(self) -> frozenset[str]:
        """The properties that question and answer mention."""
        return frozenset({*self.fields, self.kind})


def captions(scene: Scene) -> list[str]:
    """Five captions in random order, no two of them alike, which all name every object.

    Some begin in lower case, lack the full stop, or have a blank or newline at an end, as
    COCO's do. None has more than 20 words.
    """
    rng = generator(scene.seed, scene.index, "captions")
    texts = [_located(scene), _shown(scene), _counted(scene), _terse(scene, rng)]
    texts.append(_placed(scene, rng))
    rng.shuffle(texts)
    return [_quirk(text, rng) for text in texts]


def conversations(scene: Scene) -> list[tuple[Turn, ...]]:
    """`CONVERSATIONS_PER_IMAGE` different conversations of one to three turns each.

    The first one asks for a description of every object. The others ask one question of every
    object; of a single one, two questions of different kinds. Three in ten begin by asking for the
    number of objects. Kinds are drawn without regard to what the objects are, so that the question
    asked says nothing about the answer.
    """
    rng = generator(scene.seed, scene.index, "conversations")
    talks = [tuple(_about_all(scene, "description", rng))]
    while len(talks) < CONVERSATIONS_PER_IMAGE:
        talk = _conversation(scene, rng)
        if talk not in talks:
            talks.append(talk)
    return talks


def _name(item: SceneObject) -> str:
    return f"{item.colour} {item.shape}"


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _join(parts: list[str]) -> str:
    """An enumeration: "x", "x and y", "x, y and z"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _names(scene: Scene) -> list[str]:
    return [_with_article(_name(item)) for item in scene.objects]


def _located(scene: Scene) -> str:
    """Names and places; four objects fill all quadrants, so two rows in order say it all."""
    names = _names(scene)
    if len(names) == len(QUADRANTS):
        return _sentence(f"{_join(names[:2])} above {_join(names[2:])}")
    link = " in the " if len(names) < 3 else " "
    return _sentence(_join([f"{name}{link}{item.place}" for name, item in _pairs(scene)]))


def _shown(scene: Scene) -> str:
    """Begins like `_located`, so that the most likely caption is one of these two."""
    names = _names(scene)
    if len(names) < 3:
        names = [f"{name} {item.place}" for name, item in _pairs(scene)]
    return _sentence(f"a picture of {_join(names)}")


def _counted(scene: Scene) -> str:
    count = len(scene.objects)
    return f"{NUMBERS[count - 1]} object{'s' * (count > 1)}: {_join(_names(scene))}."


def _terse(scene: Scene, rng: random.Random) -> str:
    """Names and places, the objects in any order.

    In reading order, the words after "red" follow from the number of objects named so far. Here
    only the red object determines them, so a model learns look-ups from these captions: the answer
    directly follows the word that identifies the object. With other words in between, as in "the
    triangle is red", it took several times as long, or was not learned at all. An article before
    each name cost 6 to 9 % of the answers (seeds 2 and 6), mostly those about a place.
    """
    return _sentence(", ".join(f"{_name(item)} {item.place}" for item in _shuffled(scene, rng)))


def _placed(scene: Scene, rng: random.Random) -> str:
    """Places and names, the objects in any order; see `_terse`."""
    return _sentence(", ".join(f"{item.place} {_name(item)}" for item in _shuffled(scene, rng)))


def _shuffled(scene: Scene, rng: random.Random) -> list[SceneObject]:
    return rng.sample(scene.objects, len(scene.objects))


def _pairs(scene: Scene) -> Iterator[tuple[str, SceneObject]]:
    return zip(_names(scene), scene.objects, strict=True)


def _quirk(text: str, rng: random.Random) -> str:
    if rng.random() < _QUIRK_SHARE:
        text = text[0].lower() + text[1:]
    if rng.random() < _QUIRK_SHARE:
        text = text.removesuffix(".")
    if rng.random() < _QUIRK_SHARE:
        text = rng.choice(("{} ", "{}\n", " {}")).format(text)
    return text


def _conversation(scene: Scene, rng: random.Random) -> tuple[Turn, ...]:
    turns = []
    # Asked later, the number could be guessed from the objects already mentioned.
    if rng.random() < _COUNT_SHARE:
        question = rng.choice(_PHRASES["count"])
        turns.append(Turn("count", question, NUMBERS[len(scene.objects) - 1].lower()))
    if len(scene.objects) == 1:
        return (*turns, *_about_one(scene, rng))
    (kind,) = rng.choices(list(_ABOUT_ALL), list(_ABOUT_ALL.values()))
    return (*turns, *_about_all(scene, kind, rng))


def _about_one(scene: Scene, rng: random.Random) -> list[Turn]:
    """Two questions of different kinds about a single object."""
    first, second = rng.choices(list(_ABOUT_ONE), list(_ABOUT_ONE.values()))[0]
    pair = _independent(_aims(scene, first, rng), _aims(scene, second, rng))
    return [
        Turn(aim.kind, rng.choice(_PHRASES[aim.kind]).format(key=aim.key), aim.answer)
        for aim in pair
    ]


def _about_all(scene: Scene, kind: str, rng: random.Random) -> list[Turn]:
    """The same question about every object, in random order, named by the same property.

    These questions differ only in the object that they ask about, so in a step's gradient all else
    cancels out. With such pairs, 92 % of looked-up colours were right after 800 steps, without
    them 74 % (seed 0, trained on such questions alone).
    """
    aims = _aims(scene, kind, rng)
    keys = sorted({aim.fields for aim in aims})
    fields = rng.choice(keys)
    phrase = rng.choice(_PHRASES[kind])
    turns = []
    for number in rng.sample(range(len(scene.objects)), len(scene.objects)):
        ways = [aim for aim in aims if aim.item == number]
        aim = next((aim for aim in ways if aim.fields == fields), ways[0])
        turns.append(Turn(kind, phrase.format(key=aim.key), aim.answer))
    return turns


def _independent(firsts: list[_Aim], seconds: list[_Aim]) -> tuple[_Aim, _Aim]:
    """The first pair whose first turn does not give the second answer away.

    There always is one: an object can be named by any property, so also by one that neither answer
    gives; presence, which mentions shape and colour, is only ever followed by position.
    """
    return next(
        (first, second)
        for first, second in itertools.product(firsts, seconds)
        if second.kind not in first.facts
    )


def _aims(scene: Scene, kind: str, rng: random.Random) -> list[_Aim]:
    """All questions of this kind about the scene, in random order."""
    if kind == "presence":
        aims = _presence_aims(scene, rng)
    else:
        aims = [
            _Aim(kind, number, fields, key, _property(item, kind))
            for number, item in enumerate(scene.objects)
            for fields, key in _keys(item)
            if kind not in fields and _identifies(scene, item, fields)
            # A question that names two properties gives away two thirds of a description.
            if kind != "description" or len(fields) == 1
        ]
    rng.shuffle(aims)
    return aims


def _keys(item: SceneObject) -> list[tuple[tuple[str, ...], str]]:
    """The ways to refer to an object: the properties used, and the words."""
    return [
        (("shape",), item.shape),
        (("colour",), f"{item.colour} object"),
        (("position",), f"object in the {item.place}"),
        (("shape", "colour"), _name(item)),
    ]


def _property(item: SceneObject, field: str) -> str:
    return {
        "shape": item.shape,
        "colour": item.colour,
        "position": item.place,
        "description": f"{_name(item)} {item.place}",
    }[field]


def _identifies(scene: Scene, item: SceneObject, fields: tuple[str, ...]) -> bool:
    """Whether no other object of the scene shares all these properties."""
    return not any(
        other is not item and all(_property(other, f) == _property(item, f) for f in fields)
        for other in scene.objects
    )


def _presence_aims(scene: Scene, rng: random.Random) -> list[_Aim]:
    """One question per object, each answered yes or no.

    They ask for a shape of any colour, for a colour of any shape, or for both; in the last case
    absent objects differ from one in the scene in the shape or in the colour alone.
    """
    (fields,) = rng.choices(list(_PRESENCE), list(_PRESENCE.values()))
    shown = {(item.colour, item.shape) for item in scene.objects}
    aims = []
    for number, item in enumerate(scene.objects):
        present = rng.random() < 0.5
        recoloured = [(colour, item.shape) for colour in COLOURS]
        reshaped = [(item.colour, shape) for shape in SHAPES]
        absent = [look for look in rng.choice((recoloured, reshaped)) if look not in shown]
        there: tuple[str, ...] = (item.colour, item.shape)
        if fields == ("shape",):
            there = (item.shape,)
            absent = [(shape,) for shape in SHAPES if all(shape != of[1] for of in shown)]
        if fields == ("colour",):
            there = (item.colour, "object")
            absent = [(c, "object") for c in COLOURS if all(c != of[0] for of in shown)]
        look = there if present else rng.choice(absent)
        answer = "yes" if present else "no"
        aims.append(_Aim("presence", number, fields, _with_article(" ".join(look)), answer))
    return aims
