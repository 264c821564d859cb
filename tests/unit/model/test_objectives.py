"""Both training methods: schedules, coins, and the equalities that tie them together."""

from collections.abc import Collection, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

from model.errors import ModelError
from model.objective_configs import (
    Decay,
    MixedByLengthConfig,
    MixedConfig,
    ObjectiveConfig,
    ScheduledSamplingConfig,
    StandardConfig,
    is_scheduled_step,
    sampling_rate,
)
from model.objectives import (
    ObjectiveLoss,
    objective_loss,
    scheduled_sampling,
    standard,
    true_token_coins,
    with_replaced_tokens,
)
from model.projectors import LinearConfig, SparseMixtureConfig
from model.vlm import Batch, VisionLanguageModel, build_vlm, freeze
from tests.support.sampling_reference import scheduled_sampling_reference

VISION, PATCHES, VOCABULARY = 12, 4, 97
DECAYS: tuple[Decay, ...] = ("linear", "exponential", "inverse_sigmoid")
decays = st.sampled_from(DECAYS)
SPARSE = SparseMixtureConfig(
    reducer="none", tokens=PATCHES, experts=4, layers=1, active=2, balance_weight=0.5
)


def tiny_vlm(config: LinearConfig | SparseMixtureConfig | None = None) -> VisionLanguageModel:
    torch.manual_seed(0)
    phi = PhiConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return build_vlm(config or LinearConfig(), VISION, PATCHES, PhiForCausalLM(phi).eval())


def make_batch(
    lengths: Sequence[int] = (9, 5, 7), supervised: Sequence[Collection[int]] = ()
) -> Batch:
    generator = torch.Generator().manual_seed(0)
    rows, width = len(lengths), max(lengths)
    attention = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    chosen = attention.clone()
    for row, positions in enumerate(supervised):
        chosen[row] = False
        chosen[row, list(positions)] = True
    return Batch(
        patches=torch.randn(rows, PATCHES, VISION, generator=generator),
        input_ids=torch.randint(VOCABULARY, (rows, width), generator=generator),
        attention=attention,
        supervised=chosen,
    )


CAPTIONS = make_batch()
TWO_TURNS = make_batch((9, 5, 7), [(2, 3, 6, 7, 8), (0, 4), (3, 4, 5)])
each_batch = pytest.mark.parametrize("batch", [CAPTIONS, TWO_TURNS], ids=["captions", "two turns"])


def coins(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def schedule(
    decay: Decay = "linear",
    start: float = 1.0,
    end: float = 0.0,
    sharpness: float = 5.0,
    passes: int = 1,
) -> ScheduledSamplingConfig:
    return ScheduledSamplingConfig(
        decay=decay, start_rate=start, end_rate=end, sharpness=sharpness, passes=passes
    )


def naive_nll(vlm: VisionLanguageModel, batch: Batch, fed_ids: Tensor) -> Tensor:
    """Row by row, no mask, all logits: feed `fed_ids`, score the batch's own tokens."""
    prefix = vlm.vision_prefix(batch.patches).tokens
    found = []
    for row, fed in enumerate(fed_ids):
        text = vlm.language_model.get_input_embeddings()(fed)
        joint = torch.cat([prefix[row], text]).unsqueeze(0)
        scores = vlm.language_model(inputs_embeds=joint).logits[0].log_softmax(-1)
        for token in batch.supervised[row].nonzero().flatten().tolist():
            found.append(-scores[prefix.shape[1] + token - 1, batch.input_ids[row, token]])
    return torch.stack(found)


def gradients(vlm: VisionLanguageModel, loss: ObjectiveLoss) -> list[Tensor]:
    return list(torch.autograd.grad(loss.loss, list(vlm.parameters()), materialize_grads=True))


# Schedules


@settings(max_examples=200)
@given(
    decay=decays,
    rates=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    sharpness=st.floats(0.01, 50),
    steps=st.integers(2, 10_000),
    data=st.data(),
)
def test_rates_start_high_fall_and_stay_within_their_ends(
    decay: Decay,
    rates: tuple[float, float],
    sharpness: float,
    steps: int,
    data: st.DataObject,
) -> None:
    config = schedule(decay, max(rates), min(rates), sharpness)
    earlier, later = sorted(data.draw(st.tuples(*[st.integers(0, steps - 1)] * 2)))
    assert sampling_rate(config, 0, steps) == pytest.approx(max(rates))
    first, second = (sampling_rate(config, step, steps) for step in (earlier, later))
    assert max(rates) >= first >= second - 1e-12
    assert second >= min(rates)


@given(decay=decays, sharpness=st.floats(1, 50), steps=st.integers(2, 10_000))
def test_rates_arrive_at_the_end(decay: Decay, sharpness: float, steps: int) -> None:
    config = schedule(decay, 0.9, 0.2, sharpness)
    assert sampling_rate(config, steps - 1, steps) == pytest.approx(0.2)


def test_linear_is_bengios_line_with_a_floor() -> None:
    assert sampling_rate(schedule(sharpness=1.0), 25, 101) == pytest.approx(0.75)
    assert sampling_rate(schedule(sharpness=2.0), 25, 101) == pytest.approx(0.5)
    assert sampling_rate(schedule(sharpness=2.0, end=0.1), 80, 101) == pytest.approx(0.1)
    assert sampling_rate(schedule(sharpness=0.5), 100, 101) == pytest.approx(0.5)


def test_exponential_falls_by_the_same_factor_over_equal_times() -> None:
    config = schedule("exponential", sharpness=20.0)  # the shift by exp(-20) is below the tolerance
    quarter, half = (sampling_rate(config, step, 101) for step in (25, 50))
    assert half / quarter == pytest.approx(quarter, rel=1e-3)


def test_inverse_sigmoid_is_bengios_curve_up_to_its_ends() -> None:
    k, steps = 12.0, 101
    config = schedule("inverse_sigmoid", sharpness=2 * torch.tensor(k).log().item())

    def bengio(step: int) -> float:
        # k / (k + exp(i / k)), with i counted so that the middle k ln(k) is at half the training.
        i = 2 * k * torch.tensor(k).log() * step / (steps - 1)
        return (k / (k + torch.exp(i / k))).item()

    for step in (0, 20, 50, 77, 100):
        stretched = (bengio(step) - bengio(100)) / (bengio(0) - bengio(100))
        assert sampling_rate(config, step, steps) == pytest.approx(stretched, abs=1e-5)


def test_a_training_of_one_step_uses_the_start_rate() -> None:
    assert sampling_rate(schedule(start=0.8), 0, 1) == 0.8


def test_rates_that_rise_are_refused() -> None:
    with pytest.raises(ValidationError, match="swap them"):
        schedule(start=0.2, end=0.5)


# Equalities


@each_batch
@pytest.mark.parametrize("config", [LinearConfig(), SPARSE], ids=lambda c: c.kind)
def test_at_rate_one_scheduled_sampling_is_the_standard_loss(
    batch: Batch, config: LinearConfig | SparseMixtureConfig
) -> None:
    vlm = tiny_vlm(config)
    one, other = standard(vlm, batch), scheduled_sampling(vlm, batch, 1.0, coins())
    assert torch.equal(one.loss, other.loss)
    assert all(map(torch.equal, gradients(vlm, one), gradients(vlm, other)))
    sequential = scheduled_sampling_reference(vlm, batch, 1.0, coins())
    torch.testing.assert_close(sequential.token_nll, one.token_nll, rtol=0, atol=1e-5)


@each_batch
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.6])
def test_enough_passes_equal_the_sequential_loop(batch: Batch, rate: float) -> None:
    vlm = tiny_vlm()
    passes = int(batch.supervised.sum(dim=1).max())
    parallel = scheduled_sampling(vlm, batch, rate, coins(), passes=passes)
    sequential = scheduled_sampling_reference(vlm, batch, rate, coins())
    torch.testing.assert_close(parallel.token_nll, sequential.token_nll, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        gradients(vlm, parallel), gradients(vlm, sequential), rtol=1e-3, atol=1e-4
    )
    teacher_forced = standard(vlm, batch).token_nll
    assert not torch.allclose(parallel.token_nll, teacher_forced, atol=1e-2)


@each_batch
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_two_passes_feed_the_first_passes_guesses_and_score_the_truth(
    batch: Batch, rate: float
) -> None:
    vlm = tiny_vlm()
    prefix = vlm.vision_prefix(batch.patches).tokens
    joint = torch.cat([prefix, vlm.embed_text(batch.input_ids)], dim=1)
    # Right padding cannot be seen by the tokens in front of it, so no mask is needed here.
    guesses = vlm.language_model(inputs_embeds=joint).logits.argmax(-1)[:, prefix.shape[1] - 1 : -1]
    truth = true_token_coins(batch, rate, coins())
    fed_ids = torch.where(truth, batch.input_ids, guesses)
    found = scheduled_sampling(vlm, batch, rate, coins())
    torch.testing.assert_close(found.token_nll, naive_nll(vlm, batch, fed_ids), rtol=0, atol=1e-5)


@each_batch
def test_two_passes_whose_coins_all_say_truth_are_standard_training(batch: Batch) -> None:
    vlm = tiny_vlm(SPARSE)
    once = standard(vlm, batch)
    twice = scheduled_sampling(vlm, batch, 1 - 1e-7, coins())
    torch.testing.assert_close(twice.token_nll, once.token_nll, rtol=0, atol=1e-5)
    for ours, theirs in zip(gradients(vlm, twice), gradients(vlm, once), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_one_predicting_pass_is_an_approximation_of_the_loop() -> None:
    vlm, batch = tiny_vlm(), CAPTIONS
    sequential = scheduled_sampling_reference(vlm, batch, 0.0, coins()).token_nll
    parallel = scheduled_sampling(vlm, batch, 0.0, coins()).token_nll
    assert not torch.allclose(parallel, sequential, atol=1e-2)


def test_standard_scores_are_those_of_a_naive_forward() -> None:
    vlm = tiny_vlm()
    expected = naive_nll(vlm, TWO_TURNS, TWO_TURNS.input_ids)
    torch.testing.assert_close(standard(vlm, TWO_TURNS).token_nll, expected, rtol=0, atol=1e-5)


def test_the_loss_is_the_mean_over_tokens_plus_the_balancing_loss() -> None:
    vlm = tiny_vlm(SPARSE)
    found = standard(vlm, TWO_TURNS)
    assert found.tokens == 10
    assert found.nll.item() == pytest.approx(found.token_nll.sum().item() / 10)
    assert found.auxiliary_loss.item() >= 0.4
    assert found.loss.item() == pytest.approx((found.nll + found.auxiliary_loss).item())
    assert found.expert_usage.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_gradients_reach_the_whole_prefix_and_no_frozen_weight(rate: float) -> None:
    vlm = tiny_vlm(SPARSE)
    freeze(vlm.language_model)
    vlm.train()
    scheduled_sampling(vlm, CAPTIONS, rate, coins()).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in vlm.vision_prefix.parameters())
    assert all(p.grad is None for p in vlm.language_model.parameters())


# Coins


def test_tokens_that_are_no_targets_are_always_fed_as_they_are() -> None:
    truth = true_token_coins(TWO_TURNS, 0.0, coins())
    assert torch.equal(truth, ~TWO_TURNS.supervised)


@given(rate=st.floats(0, 1), extra=st.integers(0, 5), seed=st.integers(0, 2**31))
@settings(deadline=None)
def test_padding_does_not_change_the_coins(rate: float, extra: int, seed: int) -> None:
    wide = Batch(
        TWO_TURNS.patches,
        *(
            torch.nn.functional.pad(each, (0, extra))
            for each in (TWO_TURNS.input_ids, TWO_TURNS.attention, TWO_TURNS.supervised)
        ),
    )
    narrow = true_token_coins(TWO_TURNS, rate, coins(seed))
    padded = true_token_coins(wide, rate, coins(seed))
    assert torch.equal(padded[:, : narrow.shape[1]], narrow)
    assert padded[:, narrow.shape[1] :].all()


def test_the_share_of_true_tokens_is_the_rate() -> None:
    everything = torch.ones(100, 200, dtype=torch.bool)
    batch = Batch(torch.zeros(100, PATCHES, VISION), everything.long(), everything, everything)
    truth = true_token_coins(batch, 0.3, coins())
    assert truth.float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_the_same_generator_state_gives_the_same_loss() -> None:
    vlm = tiny_vlm()
    losses = [scheduled_sampling(vlm, CAPTIONS, 0.5, coins(s)).nll.item() for s in (1, 1, 2)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


# Replaced tokens


def test_nothing_is_drawn_where_nothing_is_replaced() -> None:
    generator = coins()
    assert with_replaced_tokens(TWO_TURNS, 0.0, generator) is TWO_TURNS.input_ids
    assert torch.equal(torch.rand(2, generator=generator), torch.rand(2, generator=coins()))


def test_about_the_share_of_the_supervised_tokens_is_replaced_by_others_of_them() -> None:
    ids = torch.arange(100 * 200).view(100, 200)
    everything = torch.ones_like(ids, dtype=torch.bool)
    supervised = everything.clone()
    supervised[:, :50] = False
    batch = Batch(torch.zeros(100, PATCHES, VISION), ids, everything, supervised)
    fed = with_replaced_tokens(batch, 0.2, coins())
    assert torch.equal(fed[~supervised], ids[~supervised])
    assert (fed != ids)[supervised].float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert supervised.flatten()[fed[supervised]].all()  # an id is the token's place in the batch


def test_replaced_tokens_are_fed_and_the_targets_stay() -> None:
    fed = with_replaced_tokens(TWO_TURNS, 0.9, coins())
    assert not torch.equal(fed, TWO_TURNS.input_ids)
    vlm = tiny_vlm()
    found = vlm.supervised_states(TWO_TURNS, fed)
    expected = vlm.nll(found.states, TWO_TURNS.input_ids[TWO_TURNS.supervised])
    assert torch.equal(loss_at(StandardConfig(replaced=0.9), 5).token_nll, expected)
    assert not torch.equal(expected, standard(vlm, TWO_TURNS).token_nll)


# Choosing the method


def loss_at(config: ObjectiveConfig, step: int, steps: int = 10) -> ObjectiveLoss:
    return objective_loss(
        config, tiny_vlm(), TWO_TURNS, step=step, total_steps=steps, generator=coins()
    )


def test_the_configured_method_is_used() -> None:
    expected = standard(tiny_vlm(), TWO_TURNS).token_nll
    assert torch.equal(loss_at(StandardConfig(replaced=0.0), 5).token_nll, expected)
    assert torch.equal(loss_at(schedule(), 0).token_nll, expected)
    sampled = scheduled_sampling(tiny_vlm(), TWO_TURNS, 0.5, coins()).token_nll
    halfway = loss_at(schedule(sharpness=1.0), 5, steps=11).token_nll
    assert torch.equal(halfway, sampled)


@given(share=st.floats(0, 1), start=st.integers(0, 1000), length=st.integers(1, 500))
def test_mixed_keeps_its_share_over_any_stretch(share: float, start: int, length: int) -> None:
    config = MixedConfig(scheduled_share=share, scheduled=schedule())
    count = sum(is_scheduled_step(config, step) for step in range(start, start + length))
    assert abs(count - share * length) <= 1


def test_mixed_alternates_between_the_methods() -> None:
    config = MixedConfig(scheduled_share=0.5, scheduled=schedule(start=0.0))
    teacher_forced = standard(tiny_vlm(), TWO_TURNS).token_nll
    same = [torch.equal(loss_at(config, step).token_nll, teacher_forced) for step in range(4)]
    assert same == [True, False, True, False]


def test_mixed_by_length_samples_short_rows_only() -> None:
    config = MixedByLengthConfig(longest=3, scheduled=schedule(start=0.0))
    found = loss_at(config, 0).token_nll.split([5, 2, 3])
    teacher_forced = standard(tiny_vlm(), TWO_TURNS).token_nll.split([5, 2, 3])
    torch.testing.assert_close(found[0], teacher_forced[0])
    assert not torch.allclose(found[2], teacher_forced[2])


@pytest.mark.parametrize(
    "config",
    [
        StandardConfig(replaced=0.0),
        schedule(),
        MixedConfig(scheduled_share=0.3, scheduled=schedule()),
        MixedByLengthConfig(longest=20, scheduled=schedule()),
    ],
    ids=lambda config: config.kind,
)
def test_objectives_survive_json(config: ObjectiveConfig) -> None:
    adapter = TypeAdapter(ObjectiveConfig)
    assert adapter.validate_json(adapter.dump_json(config)) == config


def test_a_batch_without_targets_is_refused() -> None:
    with pytest.raises(ModelError, match="supervised"):
        make_batch((3, 3), [(), ()])
