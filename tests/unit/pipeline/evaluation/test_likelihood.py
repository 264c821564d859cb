"""Likelihoods of held-out text: they equal a plain forward pass over one text at a time."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from model.language import load_language_model
from model.projectors import LinearConfig
from model.prompt import IMAGE
from model.vlm import VisionLanguageModel, build_vlm
from pipeline.data.schemas import EXAMPLES
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.likelihood import (
    Nats,
    by_answer_type,
    held_out_rows,
    likelihood,
    model_likelihood,
    text_likelihood,
    whole,
)
from pipeline.recipe.presets import preset
from storage.features.patches import PatchTable
from tests.support.shown_images import key_of, nats_by_hand, write_images
from tests.support.training_inputs import PATCHES, VISION, WORDS, write_inputs

TESTED = 6  # images; as many behind them are for training
Row = dict[str, Any]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    root = tmp_path_factory.mktemp("likelihood")
    write_inputs(root)
    torch.manual_seed(4)
    built = build_vlm(
        LinearConfig(), VISION, PATCHES, load_language_model(root / "backbones/lm")
    ).eval()
    with torch.no_grad():
        for parameter in built.vision_prefix.parameters():
            parameter.normal_(0, 0.5)
    return built


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchTable:
    rng = np.random.default_rng(5)
    values = rng.standard_normal((2 * TESTED, PATCHES, VISION)).astype(np.float16)
    return write_images(tmp_path_factory.mktemp("patches"), values)


@pytest.fixture(scope="module")
def shown(patches: PatchTable) -> Shown:
    return Shown(patches, np.arange(TESTED), np.arange(TESTED, 2 * TESTED), 3)


def row_of(number: int, image: int, ids: list[int], asked: int, kind: str = "caption") -> Row:
    """An example whose first `asked` tokens are a question."""
    return {
        "example_id": number,
        "kind": kind,
        "split": "test",
        "image_id": 100 + image,
        "sha256": key_of(image),
        "more_sha256": [],
        "source_id": number,
        "turns": 1,
        "text": "",
        "input_ids": ids,
        "supervised": [place >= asked for place in range(len(ids))],
    }


ROWS = [
    row_of(0, 0, [5, 6, 7, 0], 0),
    row_of(1, 1, [9, 3, 0], 1),
    row_of(2, 1, [9, 4, 8, 2, 0], 3),
    row_of(3, 4, [11, 0], 0),
    row_of(4, 2, [WORDS - 1, 1, 0], 1),
]


CONDITIONS = ("real", "shuffled", "blind")


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_it_is_what_one_plain_pass_per_text_gives(
    vlm: VisionLanguageModel, shown: Shown, batch: int
) -> None:
    rows = [*ROWS, row_of(5, 3, [7], 0)]  # a single token, which the separator predicts
    done: list[int] = []
    found = likelihood(
        vlm, rows, shown, CONDITIONS, batch, "cpu", lambda amount=1, note="": done.append(amount)
    )
    assert sum(done) == len(CONDITIONS) * len(rows)
    assert tuple(found) == CONDITIONS
    for condition, nats_of in found.items():
        for row, nats in zip(rows, nats_of, strict=True):
            image = shown.show(shown.patches.rows_of([row["sha256"]]), condition)[0]
            expected = nats_by_hand(vlm, image, row["input_ids"])[torch.tensor(row["supervised"])]
            np.testing.assert_allclose(nats, expected.numpy(), rtol=1e-4)


def test_each_image_is_read_once_for_all_conditions(vlm: VisionLanguageModel, shown: Shown) -> None:
    seen: list[int] = []
    hook = vlm.vision_prefix.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    likelihood(vlm, ROWS, shown, CONDITIONS, 2, "cpu")
    hook.remove()
    about = shown.patches.rows_of([row["sha256"] for row in ROWS]).tolist()
    images = {shown.image(row, condition) for row in about for condition in CONDITIONS}
    assert sum(seen) == len(images) < len(CONDITIONS) * len(set(about))
    assert max(seen) == 2


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_text_may_be_about_several_images(
    vlm: VisionLanguageModel, shown: Shown, condition: str
) -> None:
    several = row_of(5, 2, [5, IMAGE, 6, 7, IMAGE, 8, 0], 5)
    several["more_sha256"] = [key_of(0), key_of(3)]
    rows = [*ROWS[:2], several, *ROWS[2:]]
    found = likelihood(vlm, rows, shown, [condition], 4, "cpu")[condition]
    alone = likelihood(vlm, ROWS, shown, [condition], 4, "cpu")[condition]
    for nats, expected in zip([*found[:2], *found[3:]], alone, strict=True):
        np.testing.assert_allclose(nats, expected, rtol=1e-4)
    hashes = [several["sha256"], *several["more_sha256"]]
    patches = shown.show(shown.patches.rows_of(hashes), condition)
    with torch.no_grad():
        first, second, third = vlm.embed_images(patches).tokens
        words = [vlm.embed_text(torch.tensor(ids)) for ids in ([5], [6, 7], [8])]
        joint = torch.cat([first, words[0], second, words[1], third, words[2]])[None]
        logits = vlm.language_model(inputs_embeds=joint).logits[0, -2:]
        expected = nn.functional.cross_entropy(logits, torch.tensor([8, 0]), reduction="none")
    np.testing.assert_allclose(found[2], expected.numpy(), rtol=1e-4)


def test_a_blind_model_gives_a_text_the_same_about_every_image(
    vlm: VisionLanguageModel, shown: Shown
) -> None:
    same = [row_of(n, n, [5, 6, 7, 0], 0) for n in range(TESTED)]
    found = likelihood(vlm, same, shown, CONDITIONS, 4, "cpu")
    sums = {condition: [nats.sum() for nats in each] for condition, each in found.items()}
    assert np.ptp(sums["blind"]) < 1e-4
    assert np.ptp(sums["real"]) > 0.01
    # Shuffling shows each image exactly once, and no image its own.
    np.testing.assert_allclose(sorted(sums["real"]), sorted(sums["shuffled"]), rtol=1e-4)
    assert not np.isclose(sums["real"], sums["shuffled"]).any()


def test_mere_text_is_the_language_models_own_loss(vlm: VisionLanguageModel) -> None:
    found = text_likelihood(vlm, [*ROWS, row_of(9, 3, [4], 0)], 2, "cpu")
    assert [(nat.image_id, nat.tokens) for nat in found] == [
        (row["image_id"], len(row["input_ids"]) - 1) for row in ROWS
    ]  # a text of one token follows nothing
    for row, nat in zip(ROWS, found, strict=True):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            loss = vlm.language_model(input_ids=ids, labels=ids).loss
        assert nat.nats == pytest.approx(float(loss) * nat.tokens, rel=1e-4)


def test_only_test_images_that_are_shown_are_judged_shortest_first(shown: Shown) -> None:
    others = [
        {**row_of(5, 0, [1, 0], 0), "split": "train"},
        row_of(6, TESTED + 1, [1, 0], 0),
        row_of(7, 0, [1, 0], 0, kind="conversation"),
    ]
    table = pa.Table.from_pylist([*ROWS, *others], schema=EXAMPLES)

    def chosen(kind: str, split: str, limit: int) -> list[int]:
        rows = held_out_rows(table, shown, kind, split, limit, seed=0)
        return [row["example_id"] for row in rows]

    assert chosen("caption", "test", 99) == [3, 1, 4, 0, 2]
    assert chosen("conversation", "test", 9) == [7]
    assert chosen("caption", "train", 9) == [5]
    # Image 1 has two captions: four of five rows are about all four images.
    assert sorted(ROWS[number]["image_id"] for number in chosen("caption", "test", 4)) == [
        100,
        101,
        102,
        104,
    ]


def test_each_turn_counts_for_the_type_of_its_answer() -> None:
    conversation = {
        "example_id": 7,
        "image_id": 107,
        "supervised": [False, True, True, False, True, False, False, True, True, True],
    }
    nats = [np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])]
    questions = [
        {"example_id": 7, "turn": 0, "answer": "Yes, it is."},
        {"example_id": 7, "turn": 1, "answer": "Two."},
        {"example_id": 7, "turn": 2, "answer": "A red square"},
        {"example_id": 8, "turn": 0, "answer": "No"},
    ]
    assert by_answer_type([conversation], nats, questions) == {
        "yes_no": [Nats(107, 3.0, 2)],
        "number": [Nats(107, 4.0, 1)],
        "other": [Nats(107, 56.0, 3)],
    }
    assert by_answer_type([conversation], nats, questions[:1]) == {"yes_no": [Nats(107, 3.0, 2)]}
    assert whole([conversation], nats) == [Nats(107, 63.0, 6)]


def test_each_stage_is_judged_on_what_it_learned(vlm: VisionLanguageModel, shown: Shown) -> None:
    spoken = [row_of(7, 3, [8, 9, 10, 0], 2, kind="conversation")]
    examples, questions = {"caption": ROWS, "conversation": spoken}, [
        {"example_id": 7, "turn": 0, "answer": "No."}
    ]  # fmt: skip
    part = preset("demo").evaluate
    pretrained, finetuned = (
        model_likelihood(vlm, examples, questions, shown, ["real"], part, "cpu", spoke=spoke)[
            "real"
        ]
        for spoke in (False, True)
    )
    assert set(pretrained) == {"caption_nll", "nll"}
    assert pretrained["nll"] == pretrained["caption_nll"] == finetuned["caption_nll"]
    assert [nat.tokens for nat in finetuned["nll"]] == [2]
    assert finetuned["nll_yes_no"] == finetuned["nll"]
