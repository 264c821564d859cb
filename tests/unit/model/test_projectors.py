"""Every projector: shapes, sizes, gates, gradients, scale, and errors before any download."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn import functional

from model.blocks import GridPool, MixtureOfExperts, SparseMixtureOfExperts
from model.generation_configs import BeamConfig, GreedyConfig, TopPConfig
from model.objective_configs import (
    MixedByLengthConfig,
    MixedConfig,
    ScheduledSamplingConfig,
    StandardConfig,
)
from model.projectors import (
    FrozenModel,
    LateMixtureConfig,
    LinearConfig,
    MixtureConfig,
    Mlp2xGeluConfig,
    ProjectorConfig,
    Reducer,
    SparseMixtureConfig,
)

VISION, LANGUAGE, SCALE = 24, 32, 0.05


def mixture(
    reducer: Reducer = "none", tokens: int = 49, experts: int = 6, layers: int = 4
) -> MixtureConfig:
    return MixtureConfig(
        reducer=reducer, tokens=tokens, experts=experts, layers=layers, balance_weight=0.01
    )


def sparse(
    reducer: Reducer = "none", tokens: int = 49, active: int = 2, balance_weight: float = 0.01
) -> SparseMixtureConfig:
    return SparseMixtureConfig(
        reducer=reducer,
        tokens=tokens,
        experts=6,
        layers=4,
        active=active,
        balance_weight=balance_weight,
    )


CONFIGS = {
    "linear": LinearConfig(),
    "mlp2x_gelu": Mlp2xGeluConfig(),
    "mixture": mixture(),
    "mixture-linear-30": mixture("linear", 30),
    "mixture-pool-25": mixture("pool", 25),
    "late": LateMixtureConfig(layers=6),
    "sparse": sparse(),
    "sparse-linear-30": sparse("linear", 30),
    "sparse-pool-9": sparse("pool", 9),
}
every_projector = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@every_projector
def test_tokens_come_out_at_the_language_width(config: ProjectorConfig) -> None:
    projection = config.build(VISION, 49, LANGUAGE, SCALE)(torch.randn(2, 49, VISION))
    assert projection.tokens.shape == (2, config.tokens_out(49), LANGUAGE)
    assert projection.auxiliary_loss.shape == ()


@every_projector
def test_gradients_reach_every_parameter(config: ProjectorConfig) -> None:
    torch.manual_seed(0)
    projector = config.build(VISION, 49, LANGUAGE, SCALE)
    projection = projector(torch.randn(4, 49, VISION))
    target = torch.randn_like(projection.tokens)
    (functional.mse_loss(projection.tokens, target) + projection.auxiliary_loss).backward()
    untouched = [n for n, p in projector.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # The seed's 10,241,542 and 80,647,680, and the 2,560 gains of the final norm.
        (mixture(), 10_241_542 + 2560),
        (LateMixtureConfig(layers=6), 80_647_680 + 2560),
        (mixture("linear", 30), 10_241_542 + 2560 + 49 * 30 + 30),
        (mixture("pool", 25), 10_241_542 + 2560),
        (sparse(), 10_241_542 + 2560),
        (LinearConfig(), 768 * 2560 + 2560),
        (Mlp2xGeluConfig(), 768 * 2560 + 2560 + 2560 * 2560 + 2560),
    ],
)
def test_parameter_counts_with_vit_b32_and_phi2(config: ProjectorConfig, count: int) -> None:
    with torch.device("meta"):
        assert parameters(config.build(768, 49, 2560, SCALE)) == count


def test_the_seeds_two_projectors_have_their_published_size() -> None:
    with torch.device("meta"):
        first = parameters(mixture().build(768, 49, 2560, SCALE))
        second = parameters(LateMixtureConfig(layers=6).build(768, 49, 2560, SCALE))
    assert f"{first / 1e6:.2f}" == "10.24"
    assert f"{second / 1e6:.2f}" == "80.65"


@pytest.mark.parametrize(
    "config", [mixture(), sparse(), LateMixtureConfig(layers=6)], ids=["dense", "sparse", "late"]
)
@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_prefix_enters_at_the_scale_of_word_embeddings(
    config: ProjectorConfig, size: float
) -> None:
    torch.manual_seed(0)
    projector = config.build(VISION, 49, LANGUAGE, SCALE)
    tokens = projector(size * torch.randn(3, 49, VISION)).tokens
    scales = tokens.square().mean(dim=-1).sqrt()
    assert scales.detach().numpy() == pytest.approx(SCALE, rel=1e-2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), experts=st.integers(2, 8), data=st.data())
def test_gates_sum_to_one_and_sparse_gates_keep_k(
    seed: int, experts: int, data: st.DataObject
) -> None:
    active = data.draw(st.integers(2, experts))
    torch.manual_seed(seed)
    tokens = 10 * torch.randn(2, 5, 8)
    dense = MixtureOfExperts(8, experts, 0.01).gates(tokens)
    sparse_gates = SparseMixtureOfExperts(8, experts, active, 0.01).gates(tokens)
    for gates in (dense, sparse_gates):
        assert (gates >= 0).all()
        assert gates.sum(dim=-1).detach().numpy() == pytest.approx(1.0, abs=1e-5)
    assert ((sparse_gates > 0).sum(dim=-1) <= active).all()


@pytest.mark.parametrize(
    "experts",
    [MixtureOfExperts(8, 5, 0.01), *(SparseMixtureOfExperts(8, 5, k, 0.01) for k in (2, 3, 5))],
    ids=["dense", "top2", "top3", "top5"],
)
def test_a_mixture_is_the_gated_sum_of_its_experts(experts: MixtureOfExperts) -> None:
    tokens = torch.randn(3, 7, 8)
    gates = experts.gates(tokens)
    expected = sum(
        gates[..., e : e + 1] * functional.linear(tokens, experts.weight[e], experts.bias[e])
        for e in range(5)
    )
    torch.testing.assert_close(experts(tokens).tokens, expected)


def test_top_k_of_all_experts_is_the_dense_mixture() -> None:
    dense, all_active = MixtureOfExperts(8, 4, 0.01), SparseMixtureOfExperts(8, 4, 4, 0.01)
    all_active.load_state_dict(dense.state_dict())
    tokens = torch.randn(2, 9, 8)
    torch.testing.assert_close(all_active(tokens).tokens, dense(tokens).tokens)


@pytest.mark.parametrize("config", [mixture(), sparse()], ids=["dense", "sparse"])
def test_usage_is_a_share_per_expert(config: ProjectorConfig) -> None:
    projection = config.build(VISION, 49, LANGUAGE, SCALE)(torch.randn(2, 49, VISION))
    assert projection.expert_usage.shape == (6,)
    assert projection.expert_usage.sum().item() == pytest.approx(1.0)
    assert not projection.expert_usage.requires_grad


def collapsed_mixture(balance_weight: float, *, is_sparse: bool) -> MixtureOfExperts:
    torch.manual_seed(0)
    experts = (
        SparseMixtureOfExperts(8, 6, 2, balance_weight)
        if is_sparse
        else MixtureOfExperts(8, 6, balance_weight)
    )
    with torch.no_grad():
        experts.gate.bias.copy_(torch.tensor([3.0, 3.0, 0.0, 0.0, 0.0, 0.0]))
    return experts


def train_mixture(experts: MixtureOfExperts, steps: int = 100) -> torch.Tensor:
    tokens = torch.randn(1, 128, 8)
    target = torch.randn(1, 128, 8)
    optimizer = torch.optim.Adam(experts.parameters(), lr=0.03)
    for _ in range(steps):
        projection = experts(tokens)
        loss = functional.mse_loss(projection.tokens, target) + projection.auxiliary_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return experts(tokens).expert_usage


@pytest.mark.parametrize("is_sparse", [True, False])
def test_balancing_loss_brings_collapsed_experts_back(*, is_sparse: bool) -> None:
    collapsed = collapsed_mixture(0.5, is_sparse=is_sparse)
    assert collapsed(torch.randn(8, 16, 8)).expert_usage.min() < 0.05
    balanced = train_mixture(collapsed).min()
    unbalanced = train_mixture(collapsed_mixture(0.0, is_sparse=is_sparse)).min()
    assert balanced > 0.1
    assert balanced > 1.2 * unbalanced


def test_dense_balancing_loss_is_0_where_experts_weigh_alike() -> None:
    experts = MixtureOfExperts(4, 4, 0.25)
    with torch.no_grad():
        experts.gate.weight.zero_()
        experts.gate.bias.zero_()
    assert experts(torch.randn(2, 8, 4)).auxiliary_loss.item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        experts.gate.bias[0] = 100.0
    # One expert of four does it all: the squared coefficient of variation is 4 - 1.
    assert experts(torch.randn(2, 8, 4)).auxiliary_loss.item() == pytest.approx(0.75)


def test_balancing_loss_is_its_weight_where_experts_are_used_alike() -> None:
    experts = SparseMixtureOfExperts(4, 4, 2, 0.25)
    with torch.no_grad():
        experts.gate.weight.copy_(1e-3 * torch.eye(4))
        experts.gate.bias.zero_()
    # Each token points to two of the four experts, and all pairs of neighbours occur.
    eye = torch.eye(4)
    tokens = torch.stack([eye[i] + eye[(i + 1) % 4] for i in range(4)]).unsqueeze(0)
    projection = experts(tokens)
    assert projection.expert_usage.tolist() == pytest.approx([0.25] * 4)
    assert projection.auxiliary_loss.item() == pytest.approx(0.25)


def test_pooling_averages_neighbours_on_the_grid() -> None:
    grid = torch.arange(16.0).reshape(4, 4)
    pooled = GridPool(4, 2)(grid.reshape(1, 16, 1))
    means = [[grid[r : r + 2, c : c + 2].mean() for c in (0, 2)] for r in (0, 2)]
    torch.testing.assert_close(pooled.reshape(2, 2), torch.tensor(means))


def test_sparse_mixture_computes_in_bf16() -> None:
    projector = sparse().build(VISION, 49, LANGUAGE, SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert projector(torch.randn(2, 49, VISION)).tokens.isfinite().all()
    half = projector.to(torch.bfloat16)
    tokens = half(torch.randn(2, 49, VISION, dtype=torch.bfloat16)).tokens
    assert tokens.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "patches", "words"),
    [
        (mixture(), 196, "196 patches.*tokens is 49\n.*set tokens to 196"),
        (mixture("linear", 64), 49, "cannot add tokens"),
        (mixture("pool", 30), 49, "30 tokens"),
        (sparse("pool", 25), 50, "50 patches"),
    ],
)
def test_a_projector_that_does_not_fit_the_encoder_says_so(
    config: ProjectorConfig, patches: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        config.validate_against(patches)
    with pytest.raises(ValueError, match=words):
        config.build(VISION, patches, LANGUAGE, SCALE)


def test_impossible_expert_counts_are_refused() -> None:
    with pytest.raises(ValidationError, match="only 6 experts"):
        sparse(active=7)
    with pytest.raises(ValidationError):
        sparse(active=1)


@every_projector
def test_configs_survive_json(config: ProjectorConfig) -> None:
    adapter = TypeAdapter(ProjectorConfig)
    assert adapter.validate_json(adapter.dump_json(config)) == config
    with pytest.raises(ValidationError):
        adapter.validate_python({**config.model_dump(), "hidden": 3})


@pytest.mark.parametrize(
    "config",
    [
        *(type(config) for config in CONFIGS.values()),
        *(StandardConfig, ScheduledSamplingConfig, MixedConfig, MixedByLengthConfig),
        *(GreedyConfig, BeamConfig, TopPConfig),
    ],
)
def test_only_the_kind_has_a_default_and_every_other_field_is_described(
    config: type[FrozenModel],
) -> None:
    for name, field in config.model_fields.items():
        assert field.is_required() == (name != "kind")
        assert name == "kind" or field.description


def test_configs_are_read_without_torch() -> None:
    code = (
        "import sys, model.projectors, model.objective_configs, model.generation_configs;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
