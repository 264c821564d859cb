"""Examples behind one image prefix: each must come out as if it stood alone in a row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from transformers import PhiConfig, PhiForCausalLM

from model.attention_masks import block_mask
from model.batch import Batch
from model.errors import ModelError
from model.objectives import scheduled_sampling, standard
from model.projectors import MixtureConfig
from model.shared_rows import segment_mask
from model.vlm import VisionLanguageModel, build_vlm, freeze
from pipeline.training.collate import collate
from tests.support.sampling_reference import scheduled_sampling_reference

VISION, PATCHES, VOCABULARY = 12, 4, 97
each_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def tiny_vlm(attention: str = "sdpa", positions: int = 64) -> VisionLanguageModel:
    torch.manual_seed(0)
    phi = PhiForCausalLM(
        PhiConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=positions,
            initializer_range=0.3,
        )
    ).eval()
    phi.set_attn_implementation(attention)
    projector = MixtureConfig(
        reducer="none", tokens=PATCHES, experts=3, layers=1, balance_weight=0.01
    )
    return build_vlm(projector, VISION, PATCHES, phi)


@dataclass(frozen=True)
class Story:
    """Images and what is said about each: ids and target masks of its examples."""

    patches: Tensor
    ids: Sequence[Sequence[NDArray[np.int64]]]
    targets: Sequence[Sequence[NDArray[np.bool_]]]

    def shared(self) -> Batch:
        """One row per image."""
        counts = [len(examples) for examples in self.ids]
        return collate(self.patches, [*chain(*self.ids)], [*chain(*self.targets)], counts)

    def alone(self) -> Batch:
        """One row per example."""
        counts = torch.tensor([len(examples) for examples in self.ids])
        patches = self.patches.repeat_interleave(counts, dim=0)
        return collate(patches, [*chain(*self.ids)], [*chain(*self.targets)])


def story(lengths: Sequence[Sequence[int]], seed: int = 0) -> Story:
    """Random text; the first half of every third example is a question, so no target."""
    rng = np.random.default_rng(seed)
    ids = [[rng.integers(VOCABULARY, size=n) for n in row] for row in lengths]
    targets = [
        [np.arange(n) >= (n // 2 if number % 3 == 2 else 0) for number, n in enumerate(row)]
        for row in lengths
    ]
    patches = torch.from_numpy(rng.normal(size=(len(lengths), PATCHES, VISION))).float()
    return Story(patches, ids, targets)


def asked(told: Story, question: int, seed: int = 0) -> Story:
    """The same with one question in front of all examples, which nothing has to predict."""
    words = np.random.default_rng([seed, 1]).integers(VOCABULARY, size=question)
    silent = np.zeros(question, np.bool_)
    ids = [[np.concatenate([words, each]) for each in row] for row in told.ids]
    targets = [[np.concatenate([silent, each]) for each in row] for row in told.targets]
    return Story(told.patches, ids, targets)


# Rows of 14, 20 and 5 tokens: the second is the widest, the others are padded.
TOLD = story([(5, 3, 6), (7, 1, 8, 4), (5,)])


def by_example(told: Story, nll: Tensor) -> list[Tensor]:
    return list(nll.split([int(mask.sum()) for mask in chain(*told.targets)]))


def coins() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@each_attention
def test_examples_in_a_shared_row_are_scored_as_if_alone(attention: str) -> None:
    vlm = tiny_vlm(attention)
    assert not TOLD.shared().attention.all()
    torch.testing.assert_close(vlm(TOLD.shared()), vlm(TOLD.alone()), rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_that_holds_for_any_examples(lengths: list[list[int]], seed: int) -> None:
    vlm, told = tiny_vlm(), story(lengths, seed)
    torch.testing.assert_close(vlm(told.shared()), vlm(told.alone()), rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3),
    question=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_a_question_that_examples_share_is_computed_once_and_changes_nothing(
    lengths: list[list[int]], question: int, seed: int
) -> None:
    vlm, told = tiny_vlm(), asked(story(lengths, seed), question, seed)
    shared, alone = told.shared(), told.alone()
    saved = sum((len(row) - 1) * question for row in lengths)
    assert shared.attention.sum() <= alone.attention.sum() - saved  # more by chance
    torch.testing.assert_close(vlm(shared), vlm(alone), rtol=0, atol=1e-5)


def test_a_question_that_examples_share_changes_no_objective() -> None:
    vlm, told = tiny_vlm(), asked(TOLD, 4)
    plain = standard(vlm, told.alone())
    torch.testing.assert_close(standard(vlm, told.shared()).token_nll, plain.token_nll)
    sampled = [
        scheduled_sampling(vlm, batch, 0.5, coins(), passes=2)
        for batch in (told.shared(), told.alone())
    ]
    torch.testing.assert_close(sampled[0].token_nll, sampled[1].token_nll)


def test_a_target_cannot_be_shared() -> None:
    batch = asked(TOLD, 4).shared()
    with pytest.raises(ModelError, match="share cannot be supervised"):
        replace(batch, supervised=batch.attention)


@each_attention
@pytest.mark.parametrize("changed", range(3))
def test_an_example_does_not_see_the_others_of_its_row(attention: str, changed: int) -> None:
    vlm, told = tiny_vlm(attention), story([(5, 4, 6)])
    other = [list(told.ids[0])]
    other[0][changed] = (other[0][changed] + 1) % VOCABULARY
    before = by_example(told, vlm(told.shared()))
    after = by_example(told, vlm(replace(told, ids=other).shared()))
    for number in range(3):
        distance = (after[number] - before[number]).abs().max().item()
        assert distance > 0.01 if number == changed else distance < 1e-6


def test_an_image_matters_to_its_own_row_and_to_all_of_it() -> None:
    vlm, told = tiny_vlm(), story([(5, 4), (3, 6)])
    patches = told.patches.clone()
    patches[1] += 1
    before = by_example(told, vlm(told.shared()))
    after = by_example(told, vlm(replace(told, patches=patches).shared()))
    distances = [(a - b).abs().max().item() for a, b in zip(after, before, strict=True)]
    assert max(distances[:2]) < 1e-6
    assert min(distances[2:]) > 0.01


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@each_attention
def test_the_gradients_are_those_of_separate_rows(
    attention: str, frozen: bool, checkpointing: bool
) -> None:
    found = []
    for batch in (TOLD.shared(), TOLD.alone()):
        vlm = tiny_vlm(attention)
        if frozen:
            freeze(vlm.language_model)
        vlm.train()
        if checkpointing:
            vlm.enable_gradient_checkpointing()
        vlm(batch).sum().backward()
        found.append({n: p.grad for n, p in vlm.named_parameters() if p.requires_grad})
    assert all(gradient is not None for gradient in found[0].values())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@each_attention
def test_bf16_stays_close_to_fp32(attention: str) -> None:
    vlm, batch = tiny_vlm(attention), TOLD.shared()
    expected = vlm(batch).mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = vlm(batch)
    vlm.language_model.to(torch.bfloat16)
    pure, alone = vlm(batch), vlm(TOLD.alone())
    for found in (mixed, pure, alone):
        assert found.dtype == torch.float32
        assert found.mean().item() == pytest.approx(expected.item(), rel=0.02)
    torch.testing.assert_close(pure, alone, rtol=0.02, atol=0.2)


@each_attention
def test_what_stands_at_padding_does_not_matter(attention: str) -> None:
    vlm, batch = tiny_vlm(attention), TOLD.shared()
    assert batch.segments is not None
    filled = replace(
        batch,
        input_ids=batch.input_ids.masked_fill(~batch.attention, 41),
        segments=batch.segments.masked_fill(~batch.attention, 7_000_000),
    )
    torch.testing.assert_close(vlm(filled), vlm(batch), rtol=0, atol=1e-6)
    losses = [scheduled_sampling(vlm, b, 0.5, coins(), longest=4) for b in (filled, batch)]
    torch.testing.assert_close(losses[0].token_nll, losses[1].token_nll, rtol=0, atol=1e-6)


@pytest.mark.parametrize("told", [TOLD, story([(1,)])], ids=["several", "one token"])
def test_segments_that_are_all_0_change_nothing(told: Story) -> None:
    vlm, batch = tiny_vlm(), told.alone()
    assert batch.segments is None
    numbered = replace(batch, segments=torch.zeros_like(batch.input_ids))
    torch.testing.assert_close(vlm(numbered), vlm(batch), rtol=0, atol=1e-5)


# FlexAttention


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3),
    question=st.integers(0, 3),
    seen=st.lists(st.booleans(), min_size=3, max_size=3) | st.none(),
    prefix=st.integers(1, 5),
)
def test_the_rule_of_flex_attention_is_that_of_the_dense_mask(
    lengths: list[list[int]], question: int, seen: list[bool] | None, prefix: int
) -> None:
    segments = asked(story(lengths), question).shared().segments
    if segments is None:
        segments = torch.zeros(len(lengths), 4, dtype=torch.int64)
    has_image = None if seen is None else torch.tensor(seen[: len(lengths)])
    rule = block_mask(segments, prefix, has_image).mask_mod
    size = prefix + segments.shape[1]
    dense = create_mask(rule, len(segments), None, size, size, device="cpu").squeeze(1)
    torch.testing.assert_close(dense, segment_mask(segments, prefix, has_image))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_scores_examples_as_if_alone() -> None:
    told, alone = asked(TOLD, 4), tiny_vlm()(asked(TOLD, 4).alone())
    vlm = tiny_vlm("flex_attention")
    with torch.compiler.set_stance("force_eager"):  # a compiled kernel needs a C++ compiler
        found = vlm(told.shared())
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on GPUs only")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_flex_attention_has_the_gradients_of_the_dense_mask(checkpointing: bool) -> None:
    found = []
    for attention in ("sdpa", "flex_attention"):
        vlm = tiny_vlm(attention).cuda().train()
        if checkpointing:
            vlm.enable_gradient_checkpointing()
        vlm(asked(TOLD, 4).shared().to("cuda")).sum().backward()
        found.append({n: p.grad for n, p in vlm.named_parameters() if p.requires_grad})
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-3)


# Objectives


def test_scheduled_sampling_at_rate_1_is_standard_on_shared_rows() -> None:
    vlm, batch = tiny_vlm(), TOLD.shared()
    scheduled = scheduled_sampling(vlm, batch, 1.0, coins())
    torch.testing.assert_close(scheduled.token_nll, standard(vlm, batch).token_nll)


@pytest.mark.parametrize("longest", [None, 4])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_scheduled_sampling_feeds_shared_rows_what_it_feeds_separate_ones(
    rate: float, longest: int | None
) -> None:
    vlm = tiny_vlm()
    shared, alone = (
        scheduled_sampling(vlm, batch, rate, coins(), passes=2, longest=longest)
        for batch in (TOLD.shared(), TOLD.alone())
    )
    torch.testing.assert_close(shared.token_nll, alone.token_nll, rtol=0, atol=1e-5)
    assert not torch.allclose(shared.token_nll, standard(vlm, TOLD.shared()).token_nll)


def test_many_passes_on_shared_rows_equal_the_sequential_loop_on_separate_ones() -> None:
    vlm, longest = tiny_vlm(), 8
    parallel = scheduled_sampling(vlm, TOLD.shared(), 0.5, coins(), passes=longest)
    sequential = scheduled_sampling_reference(vlm, TOLD.alone(), 0.5, coins())
    torch.testing.assert_close(parallel.token_nll, sequential.token_nll, rtol=0, atol=1e-5)


def test_the_sequential_loop_refuses_shared_rows() -> None:
    with pytest.raises(ModelError, match="one example per row"):
        scheduled_sampling_reference(tiny_vlm(), TOLD.shared(), 0.5, coins())


# Limits and mistakes


def test_a_row_may_be_longer_than_the_language_model_but_no_example_may() -> None:
    vlm = tiny_vlm(positions=16)
    fits = story([(11, 11, 2), (3,)])
    torch.testing.assert_close(vlm(fits.shared()), vlm(fits.alone()), rtol=0, atol=1e-5)
    with pytest.raises(ModelError, match="18 positions, but the language model takes 16"):
        vlm(story([(5, 13, 2)]).shared())


@pytest.mark.parametrize(
    "segments",
    [[1, 1, 1, 2, 2], [0, 0, 2, 2, 2], [0, 0, 1, 0, 0], [0, 0, -1, -1, -1], [0, 0, 1]],
    ids=["starts late", "skips", "comes back", "falls", "too short"],
)
def test_segments_that_do_not_number_examples_are_refused(segments: list[int]) -> None:
    batch = story([(5,)]).alone()
    with pytest.raises(ModelError, match="segments"):
        replace(batch, segments=torch.tensor([segments]))


def test_an_attention_without_such_masks_is_refused() -> None:
    vlm = tiny_vlm()
    vlm.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="sdpa"):
        vlm(TOLD.shared())


def test_segments_move_with_their_batch() -> None:
    moved = TOLD.shared().to("meta")
    assert moved.segments is not None
    assert moved.segments.device.type == "meta"
