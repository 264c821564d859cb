"""The vision-language model: alignment of labels, masks, gradients, freezing, memory."""

from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM, ViTConfig, ViTModel

import model.frozen_head
import model.vlm
from model.errors import ModelError
from model.projectors import LinearConfig, MixtureConfig, ProjectorConfig, SparseMixtureConfig
from model.vlm import (
    Batch,
    VisionLanguageModel,
    build_vlm,
    check_precision,
    embedding_scale,
    freeze,
)

VISION, PATCHES, VOCABULARY = 12, 4, 97
DENSE = MixtureConfig(reducer="none", tokens=PATCHES, experts=3, layers=2, balance_weight=0.01)
SPARSE = SparseMixtureConfig(
    reducer="linear", tokens=3, experts=4, layers=1, active=2, balance_weight=0.01
)


def tiny_phi(**changes: Any) -> PhiForCausalLM:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    sizes.update(changes)
    return PhiForCausalLM(PhiConfig(**sizes)).eval()


def tiny_vlm(config: ProjectorConfig = DENSE, **changes: Any) -> VisionLanguageModel:
    torch.manual_seed(0)
    return build_vlm(config, VISION, PATCHES, tiny_phi(**changes))


def make_batch(
    lengths: Sequence[int] = (9, 5, 7),
    supervised: Sequence[Collection[int]] = (),
    seed: int = 0,
) -> Batch:
    """Random text; by default everything is supervised."""
    generator = torch.Generator().manual_seed(seed)
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


TWO_TURNS = make_batch((9, 5, 7), [(2, 3, 6, 7, 8), (0, 4), (3, 4, 5)])


def naive_nll(vlm: VisionLanguageModel, batch: Batch) -> Tensor:
    """The same figures by hand: one row at a time, no mask, all logits, explicit indices."""
    prefix = vlm.vision_prefix(batch.patches).tokens
    found = []
    for row in range(len(batch.input_ids)):
        ids = batch.input_ids[row][batch.attention[row]]
        text = vlm.language_model.get_input_embeddings()(ids)
        joint = torch.cat([prefix[row], text]).unsqueeze(0)
        log_probabilities = vlm.language_model(inputs_embeds=joint).logits[0].log_softmax(-1)
        for token in range(len(ids)):
            if batch.supervised[row, token]:
                position = prefix.shape[1] + token
                found.append(-log_probabilities[position - 1, ids[token]])
    return torch.stack(found)


@pytest.mark.parametrize("config", [DENSE, SPARSE, LinearConfig()], ids=lambda c: c.kind)
@pytest.mark.parametrize("batch", [make_batch(), TWO_TURNS], ids=["captions", "two turns"])
def test_every_supervised_token_is_scored_where_it_is_predicted(
    config: ProjectorConfig, batch: Batch
) -> None:
    vlm = tiny_vlm(config)
    torch.testing.assert_close(vlm(batch), naive_nll(vlm, batch), rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_alignment_holds_for_any_mask(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    chosen = [data.draw(st.sets(st.integers(0, n - 1), min_size=1)) for n in lengths]
    batch, vlm = make_batch(lengths, chosen), tiny_vlm()
    torch.testing.assert_close(vlm(batch), naive_nll(vlm, batch), rtol=0, atol=1e-5)


def test_the_separator_predicts_the_first_text_token() -> None:
    vlm, batch = tiny_vlm(), make_batch((1,))
    joint = vlm.vision_prefix(batch.patches).tokens
    torch.testing.assert_close(joint[0, -1], vlm.vision_prefix.separator)
    last = vlm.language_model(inputs_embeds=joint).logits[0, -1].log_softmax(-1)
    assert vlm(batch).item() == pytest.approx(-last[batch.input_ids[0, 0]].item(), abs=1e-5)


def test_padding_changes_nothing() -> None:
    vlm, together = tiny_vlm(), make_batch((9, 5, 7))
    alone = []
    for row, length in enumerate((9, 5, 7)):
        alone.append(
            Batch(
                patches=together.patches[row : row + 1],
                input_ids=together.input_ids[row : row + 1, :length],
                attention=together.attention[row : row + 1, :length],
                supervised=together.supervised[row : row + 1, :length],
            )
        )
    expected = torch.cat([vlm(batch) for batch in alone])
    torch.testing.assert_close(vlm(together), expected, rtol=0, atol=1e-5)


def test_ids_at_padded_positions_do_not_matter() -> None:
    vlm, batch = tiny_vlm(), make_batch()
    other = batch.input_ids.masked_fill(~batch.attention, 41)
    changed = Batch(batch.patches, other, batch.attention, batch.supervised)
    torch.testing.assert_close(vlm(changed), vlm(batch), rtol=0, atol=1e-6)


def test_an_example_does_not_see_its_neighbours() -> None:
    vlm, batch = tiny_vlm(), make_batch((6, 6, 6))
    ids = batch.input_ids.clone()
    ids[1] = (ids[1] + 1) % VOCABULARY
    patches = batch.patches.clone()
    patches[1] += 1
    before = vlm(batch).reshape(3, 6)
    after = vlm(Batch(patches, ids, batch.attention, batch.supervised)).reshape(3, 6)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]])
    assert not torch.allclose(after[1], before[1])


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=lambda c: c.kind)
def test_gradients_flow_through_a_frozen_language_model(config: ProjectorConfig) -> None:
    vlm = tiny_vlm(config)
    freeze(vlm.language_model)
    vlm.train()
    found = vlm.supervised_states(make_batch())
    (vlm.nll(found.states, found.targets).mean() + found.auxiliary_loss).backward()
    named = dict(vlm.vision_prefix.named_parameters())
    assert "separator" in named
    assert all(p.grad is not None and p.grad.any() for p in named.values())
    assert all(p.grad is None for p in vlm.language_model.parameters())


def test_a_frozen_language_model_has_no_dropout_in_training() -> None:
    vlm, batch = tiny_vlm(resid_pdrop=0.5), make_batch()
    vlm.train()
    assert not torch.equal(vlm(batch), vlm(batch))
    freeze(vlm.language_model)
    vlm.train()
    assert vlm.training
    assert torch.equal(vlm(batch), vlm(batch))


@pytest.mark.parametrize("frozen", [True, False])
def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(frozen: bool) -> None:
    batch, gradients, calls = make_batch(), [], []
    for checkpointed in (False, True):
        vlm = tiny_vlm()
        if frozen:
            freeze(vlm.language_model)
        vlm.train()
        if checkpointed:
            vlm.enable_gradient_checkpointing()
        count = []
        vlm.language_model.model.layers[0].input_layernorm.register_forward_hook(
            lambda *_, count=count: count.append(1)
        )
        vlm(batch).mean().backward()
        calls.append(len(count))
        gradients.append([p.grad for p in vlm.vision_prefix.parameters()])
    assert calls == [1, 2]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_logits_are_built_at_supervised_positions_only() -> None:
    vlm, batch, rows = tiny_vlm(), TWO_TURNS, []
    vlm.language_model.lm_head.register_forward_hook(
        lambda _module, inputs, _output: rows.append(len(inputs[0]))
    )
    vlm(batch)
    assert rows == [int(batch.supervised.sum())]


def test_chunked_logits_give_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients, losses = [], []
    for rows in (1024, 4):
        monkeypatch.setattr(model.vlm, "LOGIT_ROWS", rows)
        vlm = tiny_vlm()
        losses.append(vlm(make_batch()))
        losses[-1].mean().backward()
        gradients.append([p.grad for p in vlm.parameters()])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_behind_a_frozen_output_layer_few_rows_have_scores_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model.frozen_head, "ROWS", 8)
    losses, gradients, seen = [], [], []
    for frozen in (False, True):
        vlm, rows = tiny_vlm(), list[int]()
        vlm.language_model.requires_grad_(not frozen)
        vlm.language_model.lm_head.register_forward_hook(
            lambda _module, inputs, _output, rows=rows: rows.append(len(inputs[0]))
        )
        losses.append(vlm(make_batch()))
        losses[-1].mean().backward()
        gradients.append([p.grad for p in vlm.vision_prefix.parameters()])
        seen.append(rows)
    assert seen == [[21], [8, 8, 5]]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_trained_bias_of_the_output_layer_gets_its_gradient() -> None:
    made = []
    for fixed in (False, True):
        vlm = tiny_vlm()
        head = vlm.language_model.lm_head
        head.weight.requires_grad_(not fixed)
        (vlm(make_batch()) * 0.5).mean().backward()
        made.append(head.bias.grad)
    torch.testing.assert_close(made[0], made[1])


def test_one_batch_overfits() -> None:
    vlm, batch = tiny_vlm(initializer_range=0.02), make_batch((6, 6, 6))
    vlm.train()
    optimizer = torch.optim.AdamW(vlm.parameters(), lr=1e-2)
    for _ in range(60):
        loss = vlm(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_the_projector_alone_learns_through_a_frozen_language_model() -> None:
    vlm, batch = tiny_vlm(), make_batch((3, 3))
    freeze(vlm.language_model)
    vlm.train()
    optimizer = torch.optim.AdamW(vlm.vision_prefix.parameters(), lr=1e-2)
    first = vlm(batch).mean().item()
    for _ in range(60):
        loss = vlm(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.7 * first


def test_separator_starts_at_the_scale_of_word_embeddings() -> None:
    torch.manual_seed(0)
    language_model = tiny_phi(hidden_size=512, num_hidden_layers=1)
    vlm = build_vlm(LinearConfig(), VISION, PATCHES, language_model)
    scale = vlm.vision_prefix.separator.square().mean().sqrt().item()
    assert scale == pytest.approx(embedding_scale(language_model), rel=0.1)


def test_lora_leaves_the_loss_as_it_was_and_takes_the_gradient() -> None:
    vlm, batch = tiny_vlm(), make_batch()
    before = vlm(batch).detach()
    freeze(vlm.language_model)
    targets = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=targets), vlm.language_model)
    vlm.train()
    torch.testing.assert_close(vlm(batch), before)
    vlm(batch).mean().backward()
    touched = [n for n, p in vlm.language_model.named_parameters() if p.grad is not None]
    assert touched
    assert all("lora_" in name for name in touched)


def test_bf16_language_model_gives_float32_losses_close_to_fp32() -> None:
    vlm, batch = tiny_vlm(initializer_range=0.02), make_batch()
    expected = vlm(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = vlm(batch)
    vlm.language_model.to(torch.bfloat16)
    pure = vlm(batch)
    for found in (mixed, pure):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_cached_float16_patches_are_taken() -> None:
    vlm, batch = tiny_vlm(), make_batch()
    half = Batch(batch.patches.half(), batch.input_ids, batch.attention, batch.supervised)
    torch.testing.assert_close(vlm(half), vlm(batch), rtol=0.02, atol=0.02)


def test_a_batch_moves_to_another_device() -> None:
    moved = make_batch().to("meta")
    assert {moved.patches.device.type, moved.supervised.device.type} == {"meta"}


def masks(attention: list[int], supervised: list[int]) -> Batch:
    ids = torch.zeros(1, len(attention), dtype=torch.long)
    real, targets = torch.tensor([attention]).bool(), torch.tensor([supervised]).bool()
    return Batch(torch.zeros(1, PATCHES, VISION), ids, real, targets)


def test_batches_that_cannot_be_right_are_refused() -> None:
    with pytest.raises(ModelError, match="no token of the batch is supervised"):
        masks([1, 1, 0], [0, 0, 0])
    with pytest.raises(ModelError, match="padding is marked"):
        masks([1, 1, 0], [0, 1, 1])
    with pytest.raises(ModelError, match="pad training text on the right"):
        masks([0, 1, 1], [0, 1, 1])


def test_a_text_beyond_the_language_models_positions_is_refused() -> None:
    with pytest.raises(ModelError, match="language model takes 64"):
        tiny_vlm()(make_batch((70,)))


def test_a_model_that_is_no_language_model_is_refused() -> None:
    vit = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ModelError, match="PhiForCausalLM"):
        build_vlm(LinearConfig(), VISION, PATCHES, vit)


@pytest.mark.parametrize("precision", ["fp16", "16-mixed", "16-true", "float16"])
def test_fp16_is_refused_with_the_reason(precision: str) -> None:
    with pytest.raises(ModelError, match="overflows in fp16"):
        check_precision(precision)


def test_known_precisions_pass_and_unknown_ones_do_not() -> None:
    for precision in ("fp32", "bf16", "bf16-mixed", "32-true"):
        check_precision(precision)
    with pytest.raises(ModelError, match="unknown"):
        check_precision("int3")


def test_patches_are_centred_and_scaled_by_one_number_for_all_channels() -> None:
    vlm = tiny_vlm(LinearConfig())
    patches = 3 + torch.tensor([1.0, 4.0] * (VISION // 2)) * make_batch().patches
    with torch.no_grad():
        vlm.vision_prefix.centre_on(patches)
        mean = patches.mean(dim=(0, 1))
        scale = (patches - mean).square().mean().sqrt()
        expected = vlm.vision_prefix.projector((patches - mean) / scale).tokens
        torch.testing.assert_close(vlm.vision_prefix(patches).tokens[:, :-1], expected)


def test_patches_that_are_all_alike_give_finite_tokens() -> None:
    vlm = tiny_vlm(LinearConfig())
    patches = torch.full((2, PATCHES, VISION), 7.0)
    vlm.vision_prefix.centre_on(patches)
    assert vlm.vision_prefix(patches).tokens.isfinite().all()
