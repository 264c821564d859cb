"""One test for each known defect of the reference code that lies in the model: none may return."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

import model
from model.generation import generate
from model.generation_configs import GreedyConfig
from model.objective_configs import Decay, ScheduledSamplingConfig, sampling_rate
from model.objectives import scheduled_sampling, standard
from model.projectors import MixtureConfig
from model.vlm import Batch, VisionLanguageModel, build_vlm

VISION, PATCHES, VOCABULARY, EOS = 12, 4, 97, 7


def tiny_vlm(initializer_range: float = 0.3, reducer_tokens: int = 3) -> VisionLanguageModel:
    torch.manual_seed(0)
    phi = PhiConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=initializer_range,
    )
    config = MixtureConfig(
        reducer="linear", tokens=reducer_tokens, experts=3, layers=1, balance_weight=0.01
    )
    return build_vlm(config, VISION, PATCHES, PhiForCausalLM(phi).eval())


def batch_of(rows: list[list[int]], prompts: list[int], filler: int = EOS) -> Batch:
    """Rows of ids, supervised from each row's prompt length on, padded with `filler`."""
    width = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    positions = torch.arange(width)
    attention = positions < lengths
    return Batch(
        patches=torch.randn(len(rows), PATCHES, VISION, generator=torch.Generator().manual_seed(1)),
        input_ids=torch.tensor([row + [filler] * (width - len(row)) for row in rows]),
        attention=attention,
        supervised=attention & (positions >= torch.tensor(prompts).unsqueeze(1)),
    )


# 1. Padding with EOS and ignoring EOS in the loss, so that the model never learned to stop.


def test_eos_is_a_target_even_where_it_is_also_the_padding_id() -> None:
    vlm, batch = tiny_vlm(), batch_of([[11, 12, EOS], [13, 14, 15, 16, EOS]], [0, 0])
    assert len(vlm(batch)) == 3 + 5
    ends = vlm(batch)[torch.tensor([2, 7])]
    only_ends = Batch(
        batch.patches,
        batch.input_ids,
        batch.attention,
        batch.attention & (batch.input_ids == EOS),
    )
    torch.testing.assert_close(vlm(only_ends), ends)


def test_a_trained_model_stops() -> None:
    vlm = tiny_vlm(initializer_range=0.02)
    captions = [[11, 12, EOS], [13, 14, 15, 16, EOS]]
    batch = batch_of(captions, [0, 0])
    vlm.train()
    optimizer = torch.optim.AdamW(vlm.parameters(), lr=1e-2)
    for _ in range(60):
        loss = standard(vlm, batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    generated = generate(
        vlm, batch.patches, [[], []], eos_id=EOS, max_new_tokens=10, decoding=GreedyConfig()
    )
    assert [g.ids for g in generated] == [caption[:-1] for caption in captions]
    assert all(g.ended for g in generated)


# 2. A norm whose result was thrown away, and a patch reducer that was used but never made.


def test_the_norms_output_is_used() -> None:
    projector = tiny_vlm().vision_prefix.projector
    patches = torch.randn(2, PATCHES, VISION)
    before = projector(patches).tokens
    with torch.no_grad():
        projector.get_submodule("norm").get_parameter("weight").mul_(3)
    torch.testing.assert_close(projector(patches).tokens, 3 * before)


def test_the_patch_reducer_exists_learns_and_is_used() -> None:
    vlm, batch = tiny_vlm(reducer_tokens=3), batch_of([[11, 12, EOS]], [0])
    assert vlm.embed_images(batch.patches).tokens.shape[1] == 3 + 1
    vlm(batch).mean().backward()
    gradients = [p.grad for n, p in vlm.named_parameters() if ".reducer." in n]
    assert len(gradients) == 2
    assert all(g is not None and g.any() for g in gradients)


# 3. Schedules that were 0 from the first step, or that barely moved.


@pytest.mark.parametrize("decay", ["linear", "exponential", "inverse_sigmoid"])
def test_schedules_to_zero_start_at_one_move_and_do_not_collapse(decay: Decay) -> None:
    config = ScheduledSamplingConfig(
        decay=decay, start_rate=1.0, end_rate=0.0, sharpness=5.0, passes=1
    )
    rates = [sampling_rate(config, step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1.0)
    assert rates[1] > 0.99
    assert rates[-1] == pytest.approx(0.0)
    assert rates == sorted(rates, reverse=True)
    assert 0.05 < sum(rates) / 1000 < 0.7


# 4. A loop that recomputed the whole prefix for every token.


def count_positions(vlm: VisionLanguageModel) -> list[int]:
    """The length of every sequence that the language model's first layer sees from now on."""
    seen: list[int] = []

    def record(_module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].shape[1])

    layer = vlm.language_model.get_submodule("model.layers.0.input_layernorm")
    layer.register_forward_pre_hook(record)
    return seen


def test_scheduled_sampling_takes_two_passes_whatever_the_length() -> None:
    for length in (5, 40):
        vlm = tiny_vlm()
        seen = count_positions(vlm)
        row = [11] * length
        scheduled_sampling(vlm, batch_of([row], [0]), 0.5, torch.Generator().manual_seed(0))
        assert len(seen) == 2


def test_generation_computes_each_position_once() -> None:
    vlm = tiny_vlm()
    seen = count_positions(vlm)
    patches = torch.randn(1, PATCHES, VISION)
    generate(vlm, patches, [[5]], eos_id=96, max_new_tokens=6, decoding=GreedyConfig())
    assert seen[0] == 3 + 1 + 1
    assert set(seen[1:]) == {1}


# 5. Loss on padding and questions; answers found by scanning for a token id.


def test_questions_and_padding_carry_no_loss() -> None:
    vlm = tiny_vlm()
    rows, prompts = [[11, 12, 13, 14, EOS], [15, 16, EOS]], [3, 1]
    assert len(vlm(batch_of(rows, prompts))) == 2 + 2
    torch.testing.assert_close(
        vlm(batch_of(rows, prompts, filler=EOS)), vlm(batch_of(rows, prompts, filler=50))
    )


def test_no_id_in_a_question_moves_the_answer() -> None:
    """An EOS, a separator-like id or a repeated answer inside a question is only text."""
    vlm = tiny_vlm()
    question, answer = [EOS, 14, 15, EOS], [14, 15, EOS]
    whole = vlm(batch_of([question + answer], [0]))
    torch.testing.assert_close(vlm(batch_of([question + answer], [4])), whole[4:])


# Its three losses were misaligned.


def log_probabilities(vlm: VisionLanguageModel, batch: Batch) -> Tensor:
    prefix = vlm.vision_prefix(batch.patches).tokens
    joint = torch.cat([prefix, vlm.embed_text(batch.input_ids)], dim=1)
    return vlm.language_model(inputs_embeds=joint).logits.log_softmax(-1)


def test_each_token_is_learned_from_the_position_just_before_it() -> None:
    vlm, ids = tiny_vlm(), [11, 12, 13, 14, EOS]
    batch = batch_of([ids], [0])
    scores = log_probabilities(vlm, batch)[0]
    prefix = 3 + 1
    aligned = torch.stack([-scores[prefix + t - 1, token] for t, token in enumerate(ids)])
    one_late = torch.stack([-scores[prefix + t - 2, token] for t, token in enumerate(ids)])
    torch.testing.assert_close(vlm(batch), aligned, rtol=0, atol=1e-5)
    assert not torch.allclose(vlm(batch), one_late, atol=1e-2)


def test_the_first_caption_token_is_trained() -> None:
    vlm = tiny_vlm(initializer_range=0.02)
    batch = batch_of([[11, EOS]], [0])
    vlm(batch)[0].backward()
    assert vlm.vision_prefix.separator.grad is not None
    assert vlm.vision_prefix.separator.grad.any()


def test_answers_behind_questions_of_different_length_are_all_found() -> None:
    vlm = tiny_vlm()
    rows = [[11, 20, EOS], [11, 12, 13, 14, 21, EOS], [11, 12, 22, 23, EOS]]
    prompts = [1, 4, 2]
    batch = batch_of(rows, prompts)
    scores, prefix = log_probabilities(vlm, batch), 3 + 1
    expected = [
        -scores[row, prefix + t - 1, ids[t]]
        for row, (ids, start) in enumerate(zip(rows, prompts, strict=True))
        for t in range(start, len(ids))
    ]
    torch.testing.assert_close(vlm(batch), torch.stack(expected), rtol=0, atol=1e-5)


# 7. Arbitrary pickles and code from the network.


def test_no_pickles_are_loaded_and_no_remote_code_is_trusted() -> None:
    found = []
    for path in sorted(Path(inspect.getfile(model)).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                trusted = not (isinstance(node.value, ast.Constant) and node.value.value is False)
                found += [path.name] if trusted else []
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "torch.load",
                "pickle.load",
                "pickle.loads",
            }:
                found.append(path.name)
    assert found == []
