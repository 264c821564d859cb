"""Image choice and presence: what the model finds likeliest, beside a computation by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.assistant import Assistant, load_assistant
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.likelihood_tasks import choice_scores, presence_answers
from tests.support.shown_images import nats_by_hand, scores_by_hand, write_images

TESTED, PATCHES, VISION = 5, 49, 32
CAPTIONS = ["Two.", "Red, green or blue.", "What colour", "objects", "How many objects are there"]
ANSWERS = ("yes", "no")
QUESTIONS = [
    ["Is there red?", "Is it blue?"],
    ["Are there objects?"],
    ["What colour?", "Two?", "?"],
]


@pytest.fixture(scope="module")
def sighted(tiny_bundle: Path) -> Assistant:
    """An assistant of our own whose answers hang on the image more than others' do."""
    assistant = load_assistant(tiny_bundle)
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in assistant.vlm.vision_prefix.parameters():
            parameter.normal_(0, 0.5)
    return assistant


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    rng = np.random.default_rng(7)
    patches = rng.standard_normal((TESTED + 3, PATCHES, VISION)).astype(np.float16)
    table = write_images(tmp_path_factory.mktemp("images"), patches)
    return Shown(table, np.arange(TESTED), np.arange(TESTED, TESTED + 3), 0)


def choose(
    assistant: Assistant, shown: Shown, choices: int, condition: str = "real", batch: int = 2
) -> list[float]:
    """Image choice over all images and captions."""
    texts = [assistant.template.caption(text) for text in CAPTIONS]
    images = np.arange(TESTED)
    vlm = assistant.vlm
    return choice_scores(vlm, images, texts, choices, shown, condition, batch, "cpu").tolist()


@pytest.mark.parametrize("choices", [2, 3, 5])
@pytest.mark.parametrize("condition", ["real", "shuffled"])
def test_a_caption_chooses_among_its_image_and_those_after_it(
    sighted: Assistant, shown: Shown, choices: int, condition: str
) -> None:
    expected = []
    for number, text in enumerate(CAPTIONS):
        ids = sighted.template.caption(text).input_ids
        offered = (number + np.arange(choices)) % TESTED
        nats = [
            float(nats_by_hand(sighted.vlm, patches, ids).sum())
            for patches in shown.show(offered, condition)
        ]
        expected.append(float(nats[0] == min(nats)))
    assert choose(sighted, shown, choices, condition) == expected


def test_the_question_that_a_caption_answers_is_not_judged(
    sighted: Assistant, shown: Shown
) -> None:
    plain = sighted.template
    asking = replace(plain, caption_question="What do you see?")
    prompt = asking.caption_prompt
    expected = []
    for number, text in enumerate(CAPTIONS):
        ids = asking.caption(text).input_ids
        assert ids[: len(prompt)] == prompt
        offered = (number + np.arange(3)) % TESTED
        nats = [
            float(nats_by_hand(sighted.vlm, patches, ids)[len(prompt) :].sum())
            for patches in shown.show(offered, "real")
        ]
        expected.append(float(nats[0] == min(nats)))
    sighted.template = asking
    try:
        assert choose(sighted, shown, 3) == expected
    finally:
        sighted.template = plain


def test_the_batch_changes_no_choice(sighted: Assistant, shown: Shown) -> None:
    assert choose(sighted, shown, 3, batch=1) == choose(sighted, shown, 3, batch=99)


def test_without_an_image_all_are_alike_and_nothing_is_read(
    sighted: Assistant, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = shown.show(np.arange(TESTED), "blind")
    ids = sighted.template.caption(CAPTIONS[0]).input_ids
    nats = [float(nats_by_hand(sighted.vlm, each, ids).sum()) for each in patches]
    assert nats == [nats[0]] * TESTED
    monkeypatch.setattr(type(sighted.vlm), "forward", None)
    assert choose(sighted, shown, 4, "blind") == [0.25] * TESTED


def test_there_are_no_more_choices_than_images(sighted: Assistant, shown: Shown) -> None:
    assert choose(sighted, shown, 99) == choose(sighted, shown, TESTED)
    assert choose(sighted, shown, 99, "blind") == [1 / TESTED] * TESTED


def fork(assistant: Assistant) -> tuple[list[int], int, int]:
    """What yes and no have in common in tokens, and the first token of each that differs."""
    yes, no = (assistant.template.encode(f" {answer}") for answer in ANSWERS)
    shared = next(n for n in range(len(yes)) if yes[n] != no[n])
    return yes[:shared], yes[shared], no[shared]


def margins(assistant: Assistant, shown: Shown, condition: str) -> list[list[float]]:
    """By how much yes is likelier than no, question by question."""
    lead, yes, no = fork(assistant)
    found = []
    for image, questions in enumerate(QUESTIONS):
        patches = shown.show([image], condition)[0]
        found.append([])
        for question in questions:
            ids = [*assistant.template.question(question), *lead, yes]
            scores = scores_by_hand(assistant.vlm, patches, ids)[-1]
            found[-1].append(float(scores[yes] - scores[no]))
    return found


@pytest.mark.parametrize("condition", ["real", "shuffled", "blind"])
@pytest.mark.parametrize("batch", [1, 3])
def test_yes_is_said_where_it_is_likelier_than_no(
    sighted: Assistant, shown: Shown, condition: str, batch: int
) -> None:
    # The bias is moved so that some answers are yes and some are no.
    bias = sighted.vlm.language_model.get_submodule("lm_head").get_parameter("bias")
    flat = sorted(m for each in margins(sighted, shown, condition) for m in each)
    with torch.no_grad():
        bias[fork(sighted)[1]] -= (flat[2] + flat[3]) / 2
    expected = [[m > 0 for m in each] for each in margins(sighted, shown, condition)]
    images = np.arange(len(QUESTIONS))
    found = presence_answers(
        sighted.vlm, sighted.template, images, QUESTIONS, ANSWERS, shown, condition, batch, "cpu"
    )
    assert found == expected
    assert sum(map(sum, found)) == 3
