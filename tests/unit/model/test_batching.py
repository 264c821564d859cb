"""Texts that join and leave a batch at any token come out as if each were written alone."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batching import Batcher, TextRequest
from model.errors import ModelError
from model.generation import stream
from model.generation_configs import GenerationConfig, GreedyConfig, TopPConfig
from model.prefixes import ReadPrefix
from model.prompt import IMAGE
from model.vlm import VisionLanguageModel
from tests.unit.model.test_generation import EOS, images, tiny_vlm

# Prompts with their images; the third has none, the fourth has two.
PROMPTS: list[tuple[list[int], list[int]]] = [
    ([5, 6, 8], [0]),
    ([], [1]),
    ([9] * 7, []),
    ([1, IMAGE, 2], [2, 3]),
    ([11, 12, 13, 14, 15], [0]),
    ([20], [3]),
]
LENGTHS = [12, 3, 9, 20, 1, 15]
DECODING: list[GenerationConfig] = [
    GreedyConfig(),
    TopPConfig(top_p=0.9, temperature=0.8, seed=3),
    GreedyConfig(),
    TopPConfig(top_p=1.0, temperature=1.3, seed=4),
    GreedyConfig(),
    GreedyConfig(),
]


def request(number: int, taken: list[int | None], most: int | None = None) -> TextRequest:
    """A text; with `most` its reader leaves after so many tokens."""
    prompt, shown = PROMPTS[number]

    def take(token: int | None) -> bool:
        taken.append(token)
        return most is None or len(taken) < most

    patches = images(4)[shown] if shown else torch.zeros_like(images(1))
    return TextRequest(patches, prompt, LENGTHS[number], DECODING[number], take, bool(shown))


def alone(vlm: VisionLanguageModel, number: int) -> list[int]:
    made = request(number, [])
    told = {"eos_id": EOS, "max_new_tokens": made.max_new_tokens, "decoding": made.decoding}
    return list(stream(vlm, made.patches, made.prompt, **told, has_image=made.has_image))


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return tiny_vlm()


@pytest.fixture(scope="module")
def expected(vlm: VisionLanguageModel) -> list[list[int]]:
    return [alone(vlm, number) for number in range(len(PROMPTS))]


def written(
    vlm: VisionLanguageModel,
    arrivals: Sequence[int],
    most: int,
    kept: Mapping[int, ReadPrefix] = MappingProxyType({}),
) -> list[list[int | None]]:
    """Let texts arrive after these numbers of steps, and write all of them."""
    batcher = Batcher(vlm, EOS, most)
    taken: list[list[int | None]] = [[] for _ in PROMPTS]
    waiting = sorted(range(len(PROMPTS)), key=lambda number: arrivals[number])
    steps = 0
    while waiting or batcher.active:
        ready = [number for number in waiting if arrivals[number] <= steps][: batcher.free]
        joining = [request(number, taken[number]) for number in ready]
        for number, each in zip(ready, joining, strict=True):
            shown = PROMPTS[number][1]
            each.prefix = kept.get(shown[0]) if len(shown) == 1 else None
        batcher.join(joining)
        waiting = [number for number in waiting if number not in ready]
        batcher.step()
        steps += 1
    return taken


@settings(max_examples=25, deadline=None)
@given(
    arrivals=st.lists(st.integers(0, 12), min_size=len(PROMPTS), max_size=len(PROMPTS)),
    most=st.integers(1, 6),
)
def test_each_text_is_the_one_that_is_written_alone(
    vlm: VisionLanguageModel, expected: list[list[int]], arrivals: list[int], most: int
) -> None:
    assert written(vlm, arrivals, most) == [[*ids, None] for ids in expected]


@settings(max_examples=25, deadline=None)
@given(
    arrivals=st.lists(st.integers(0, 12), min_size=len(PROMPTS), max_size=len(PROMPTS)),
    most=st.integers(1, 6),
)
def test_a_text_about_an_image_that_was_read_before_is_the_same(
    vlm: VisionLanguageModel, expected: list[list[int]], arrivals: list[int], most: int
) -> None:
    kept: dict[int, ReadPrefix] = {}
    for number, (_, shown) in enumerate(PROMPTS):
        if len(shown) == 1:
            made = request(number, [])
            made.keep = partial(kept.__setitem__, shown[0])
            Batcher(vlm, EOS, 1).join([made])
    assert sorted(kept) == [0, 1, 3]
    assert written(vlm, arrivals, most, kept) == [[*ids, None] for ids in expected]


def test_what_was_read_is_handed_over_for_one_image_only_and_is_used(
    vlm: VisionLanguageModel,
) -> None:
    kept: list[ReadPrefix] = []
    made = [request(number, []) for number in (2, 3, 4)]  # of no image, of two, of one
    for each in made:
        each.keep = kept.append
    Batcher(vlm, EOS, 3).join(made)
    (found,) = kept
    positions = found.tokens.shape[0]
    assert found.states.shape[3] == positions
    # Products of other sizes may round differently, and do on some CPUs.
    torch.testing.assert_close(found.tokens, vlm.embed_images(made[2].patches).tokens[0])
    read: list[int] = []
    body = vlm.language_model.get_submodule("model")
    count = body.register_forward_pre_hook(
        lambda _, __, given: read.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    made[2].prefix = found
    Batcher(vlm, EOS, 1).join([made[2]])
    count.remove()
    assert read == [1 + len(PROMPTS[4][0])]  # the separator and the prompt
    assert len(kept) == 1


def test_a_reader_that_leaves_frees_its_place(
    vlm: VisionLanguageModel, expected: list[list[int]]
) -> None:
    batcher = Batcher(vlm, EOS, 2)
    left: list[int | None] = []
    stays: list[int | None] = []
    batcher.join([request(0, left, most=2), request(3, stays)])
    assert batcher.free == 0
    batcher.step()
    assert batcher.free == 1
    assert left == [*expected[0][:2], None]
    while batcher.active:
        batcher.step()
    assert stays == [*expected[3], None]


def test_more_texts_than_places_are_refused(vlm: VisionLanguageModel) -> None:
    with pytest.raises(ModelError, match="only 1 may join"):
        Batcher(vlm, EOS, 1).join([request(0, []), request(1, [])])


def test_a_text_that_would_outgrow_the_model_is_refused(vlm: VisionLanguageModel) -> None:
    made = request(0, [])
    made.max_new_tokens = 90
    with pytest.raises(ModelError, match="takes 64"):
        Batcher(vlm, EOS, 1).join([made])
