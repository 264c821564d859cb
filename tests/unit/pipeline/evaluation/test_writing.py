"""Texts of all conditions: those that one prompt alone gives, and no work twice."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model.generation import Generated, generate
from model.generation_configs import GreedyConfig
from model.language import load_language_model
from model.language_parts import body_of
from model.projectors import LinearConfig
from model.prompt import IMAGE
from model.vlm import VisionLanguageModel, build_vlm
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.image_groups import by_images
from pipeline.evaluation.tasks import Task
from pipeline.evaluation.writing import write_texts
from pipeline.recipe.presets import preset
from tests.support.shown_images import write_images
from tests.support.training_inputs import PATCHES, VISION, write_inputs

TESTED, LONGEST = 7, 14
CONDITIONS = ("real", "shuffled", "blind")
# A caption of each image, questions about some, the last of which name further images.
TASKS = [
    *(Task("caption", image, [4, 7, 10], {"number": image}) for image in range(TESTED)),
    *(
        Task("answer", image, prompt, {"number": TESTED + number}, more)
        for number, (image, prompt, more) in enumerate(
            [
                (0, [5, 6, 8], ()),
                (0, [9] * 7, ()),
                (3, [5, 6, 8], ()),
                (5, [11], ()),
                (6, [1, IMAGE, 2], (2,)),
                (2, [IMAGE, 3, IMAGE], (0, 6)),
            ]
        )
    ),
]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    root = tmp_path_factory.mktemp("writing")
    write_inputs(root)
    torch.manual_seed(6)
    language_model = load_language_model(root / "backbones/lm")
    built = build_vlm(LinearConfig(), VISION, PATCHES, language_model).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.5)
    return built


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    values = np.random.default_rng(5).standard_normal((2 * TESTED, PATCHES, VISION))
    patches = write_images(tmp_path_factory.mktemp("patches"), values.astype(np.float16))
    return Shown(patches, np.arange(TESTED), np.arange(TESTED, 2 * TESTED), 3)


def written(
    vlm: VisionLanguageModel, shown: Shown, eos: int, **changes: int
) -> dict[tuple[str, int], Generated]:
    part = preset("demo").evaluate.model_copy(update={"max_new_tokens": LONGEST, **changes})
    texts = write_texts(vlm, TASKS, shown, CONDITIONS, part, eos, "cpu")
    found = [((condition, task.fixed["number"]), text) for condition, task, (text,) in texts]
    assert len({place for place, _ in found}) == len(found) == len(CONDITIONS) * len(TASKS)
    return dict(found)


def alone(vlm: VisionLanguageModel, shown: Shown, condition: str, task: Task, eos: int) -> Any:
    patches = shown.show([task.row, *task.more], condition)
    (text,) = generate(
        vlm,
        patches,
        [task.prompt],
        eos_id=eos,
        max_new_tokens=LONGEST,
        decoding=GreedyConfig(),
    )
    return text


@pytest.fixture(scope="module")
def eos(vlm: VisionLanguageModel, shown: Shown) -> int:
    """A word that is in about half of the texts, and ends these at different tokens."""
    never = len(vlm.language_model.get_input_embeddings().get_parameter("weight"))
    texts = [alone(vlm, shown, name, task, never).ids for name in CONDITIONS for task in TASKS]
    words = {word for ids in texts for word in ids[2:]}
    half = len(texts) / 2
    return min(sorted(words), key=lambda word: abs(sum(word in ids for ids in texts) - half))


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
def test_each_text_is_the_one_that_transformers_gives_alone(
    vlm: VisionLanguageModel, shown: Shown, eos: int, batch: int
) -> None:
    found = written(vlm, shown, eos, batch=batch)
    expected = {
        (condition, task.fixed["number"]): alone(vlm, shown, condition, task, eos)
        for condition in CONDITIONS
        for task in TASKS
    }
    assert found == expected
    assert {text.ended for text in expected.values()} == {True, False}
    assert len({len(text.ids) for text in expected.values()}) > 3
    assert len({tuple(text.ids) for text in expected.values()}) > 10


def test_the_same_call_gives_texts_in_the_same_order(
    vlm: VisionLanguageModel, shown: Shown, eos: int
) -> None:
    first, second = (written(vlm, shown, eos, batch=4) for _ in range(2))
    assert list(first.items()) == list(second.items())


def test_with_beams_each_text_is_written_once_too(
    vlm: VisionLanguageModel, shown: Shown, eos: int
) -> None:
    found = written(vlm, shown, eos, batch=4, beams=2)
    greedy = written(vlm, shown, eos, batch=4)
    assert found.keys() == greedy.keys()
    assert found != greedy
    blind = {tuple(found["blind", number].ids) for number in range(TESTED)}
    assert len(blind) == 1


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`:UserWarning")
def test_a_published_penalty_for_repetition_is_obeyed(
    vlm: VisionLanguageModel, shown: Shown, eos: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = written(vlm, shown, eos)
    monkeypatch.setattr(vlm.language_model.generation_config, "repetition_penalty", 5.0)
    # One at a time: transformers takes the padding before a prompt for tokens to be spared.
    found = written(vlm, shown, eos, batch=1)
    assert found == {
        (condition, task.fixed["number"]): alone(vlm, shown, condition, task, eos)
        for condition in CONDITIONS
        for task in TASKS
    }
    assert found != plain


def test_each_image_is_read_once_and_no_text_is_written_twice(
    vlm: VisionLanguageModel, shown: Shown, eos: int
) -> None:
    read: list[int] = []
    rows: list[int] = []
    tasks = [task for task in TASKS if not task.more]
    part = preset("demo").evaluate.model_copy(update={"max_new_tokens": 1, "batch": 4})
    hooks = [
        vlm.vision_prefix.register_forward_pre_hook(lambda _, given: read.append(len(given[0]))),
        body_of(vlm.language_model).register_forward_pre_hook(
            lambda _, __, given: rows.append(len(given["inputs_embeds"])), with_kwargs=True
        ),
    ]
    texts = [*write_texts(vlm, tasks, shown, CONDITIONS, part, eos, "cpu")]
    for hook in hooks:
        hook.remove()
    assert len(texts) == len(CONDITIONS) * len(tasks)
    assert sum(read) == TESTED + 1  # shuffled shows the same images; without one, the mean
    assert max(read) == max(rows) == 4
    distinct = {
        (shown.image(task.row, condition), *task.prompt)
        for condition in CONDITIONS
        for task in tasks
    }
    # A single token each: the passes are those that read images, and those that read prompts.
    assert sum(rows) == sum(read) + len(distinct)
    assert len(distinct) == TESTED + 1 + 2 * 4 + 3


@pytest.mark.parametrize("continuous", [True, False])
def test_a_caption_has_drawn_ones_beside_the_greedy_one_and_a_question_has_none(
    vlm: VisionLanguageModel,
    shown: Shown,
    eos: int,
    monkeypatch: pytest.MonkeyPatch,
    continuous: bool,
) -> None:
    if not continuous:
        monkeypatch.setattr("pipeline.evaluation.writing.is_plainly_greedy", lambda _: False)
    greedy = written(vlm, shown, eos, batch=8)
    changes = {"max_new_tokens": LONGEST, "batch": 8, "caption_samples": 3}
    part = preset("demo").evaluate.model_copy(update=changes)
    found = {
        (condition, task.fixed["number"]): texts
        for condition, task, texts in write_texts(vlm, TASKS, shown, CONDITIONS, part, eos, "cpu")
    }
    assert {place: texts[0] for place, texts in found.items()} == greedy
    captions = [texts for (_, number), texts in found.items() if number < TESTED]
    assert {len(texts) for texts in captions} == {4}
    assert all(len(texts) == 1 for (_, number), texts in found.items() if number >= TESTED)
    assert all(len({tuple(text.ids) for text in texts}) > 1 for texts in captions)
    again = write_texts(vlm, TASKS, shown, CONDITIONS, part, eos, "cpu")
    assert {(name, task.fixed["number"]): texts for name, task, texts in again} == found


def test_drawn_captions_share_what_was_read_of_image_and_prompt(
    vlm: VisionLanguageModel, shown: Shown, eos: int
) -> None:
    read: list[int] = []
    captions = [task for task in TASKS if task.kind == "caption"]
    changes = {"max_new_tokens": 1, "batch": 8, "caption_samples": 3}
    part = preset("demo").evaluate.model_copy(update=changes)
    hook = body_of(vlm.language_model).register_forward_pre_hook(
        lambda _, __, given: read.append(given["inputs_embeds"].shape[:2].numel()),
        with_kwargs=True,
    )
    texts = [*write_texts(vlm, captions, shown, ("real",), part, eos, "cpu")]
    hook.remove()
    assert sum(len(each) for _, _, each in texts) == TESTED * 4
    # The prompt's three tokens behind the separator once; each text reads the last one again.
    assert sum(read) == TESTED * (PATCHES + 1 + 3 + 1 + 4)


def test_groups_hold_all_work_about_their_images() -> None:
    items = [(3, "a"), (1, "b"), (3, "c"), (2, "d"), (9, "e")]
    assert [*by_images(items, lambda item: item[0], 2)] == [
        ([1, 2], [(1, "b"), (2, "d")]),
        ([3, 9], [(3, "a"), (3, "c"), (9, "e")]),
    ]
    assert [*by_images([], lambda item: item, 2)] == []


def test_a_model_is_left_in_the_mode_that_it_was_in(
    vlm: VisionLanguageModel, shown: Shown, eos: int
) -> None:
    part = preset("demo").evaluate.model_copy(update={"max_new_tokens": 2})
    dropout = nn.Dropout(0.5)
    vlm.add_module("dropout", dropout)
    try:
        vlm.train()
        for _ in write_texts(vlm, TASKS[:2], shown, ["real"], part, eos, "cpu"):
            assert not dropout.training
        assert dropout.training
    finally:
        del vlm.dropout
        vlm.eval()
