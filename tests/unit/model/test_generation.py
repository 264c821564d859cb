"""Free-running text: batches, caches, ends, strategies and streaming agree with each other."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PhiConfig, PhiForCausalLM

from model.errors import ModelError
from model.generation import Generated, generate, stream
from model.generation_configs import BeamConfig, GenerationConfig, GreedyConfig, TopPConfig
from model.projectors import MixtureConfig
from model.token_choice import choose, chooser
from model.vlm import VisionLanguageModel, build_vlm

VISION, PATCHES, VOCABULARY, EOS = 12, 4, 97, 7
PROMPTS = [[5, 6, 8], [], [9] * 7, [1, 2]]
GREEDY = GreedyConfig()
BEAM = BeamConfig(beams=3, length_penalty=1.0)
TOP_P = TopPConfig(top_p=0.9, temperature=0.8, seed=3)
SUPPRESSED = [90, 91, 92, 93, 94, 95, 96]


def tiny_vlm(vocabulary: int = VOCABULARY, seed: int = 0) -> VisionLanguageModel:
    torch.manual_seed(seed)
    phi = PhiConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    config = MixtureConfig(reducer="none", tokens=PATCHES, experts=3, layers=2, balance_weight=0.01)
    return build_vlm(config, VISION, PATCHES, PhiForCausalLM(phi)).eval()


def images(count: int = len(PROMPTS)) -> Tensor:
    return torch.randn(count, PATCHES, VISION, generator=torch.Generator().manual_seed(4))


def texts(
    vlm: VisionLanguageModel,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    patches: Tensor | None = None,
    decoding: GenerationConfig = GREEDY,
    eos_id: int = EOS,
    length: int = 12,
) -> list[Generated]:
    patches = images(len(prompts)) if patches is None else patches
    return generate(vlm, patches, prompts, eos_id=eos_id, max_new_tokens=length, decoding=decoding)


@torch.no_grad()
def naive_logits(vlm: VisionLanguageModel, patches: Tensor, ids: Sequence[int]) -> Tensor:
    """The scores of the next token: one row, no cache, no mask."""
    text = vlm.embed_text(torch.tensor(ids, dtype=torch.long)).unsqueeze(0)
    joint = torch.cat([vlm.vision_prefix(patches.unsqueeze(0)).tokens, text], dim=1)
    return vlm.language_model(inputs_embeds=joint, use_cache=False).logits[0, -1]


def naive_greedy(
    vlm: VisionLanguageModel, patches: Tensor, prompt: Sequence[int], eos_id: int = EOS
) -> Generated:
    ids: list[int] = []
    for _ in range(12):
        token = int(naive_logits(vlm, patches, [*prompt, *ids]).argmax())
        if token == eos_id:
            return Generated(ids, ended=True)
        ids.append(token)
    return Generated(ids, ended=False)


@pytest.mark.parametrize("decoding", [GREEDY, BEAM], ids=lambda d: d.kind)
def test_a_row_gives_the_same_text_alone_as_in_a_padded_batch(decoding: GenerationConfig) -> None:
    vlm, patches = tiny_vlm(), images()
    together = texts(vlm, decoding=decoding)
    alone = [
        texts(vlm, [prompt], patches[row : row + 1], decoding)[0]
        for row, prompt in enumerate(PROMPTS)
    ]
    assert together == alone


@pytest.mark.parametrize("seed", range(4))
def test_greedy_text_equals_a_loop_without_cache_and_mask(seed: int) -> None:
    vlm, patches = tiny_vlm(seed=seed), images()
    expected = [naive_greedy(vlm, patches[row], p) for row, p in enumerate(PROMPTS)]
    assert texts(vlm) == expected


def test_cached_and_uncached_logits_agree() -> None:
    vlm, patches, ids = tiny_vlm(), images(2), [3, 14, 15, 92, 65, 35]
    cache = DynamicCache(config=vlm.language_model.config)
    with torch.no_grad():
        embeddings = vlm.embed_images(patches).tokens
        for length in range(len(ids)):
            attention = torch.ones(2, PATCHES + 1 + length, dtype=torch.bool)
            cached = vlm.logits(vlm.hidden(embeddings, attention, cache)[:, -1])
            uncached = torch.stack([naive_logits(vlm, p, ids[:length]) for p in patches])
            torch.testing.assert_close(cached, uncached, rtol=0, atol=1e-4)
            embeddings = vlm.embed_text(torch.tensor([ids[length]] * 2)).unsqueeze(1)


def test_generation_stops_at_the_end_of_sequence_token() -> None:
    vlm = tiny_vlm()
    free = texts(vlm)[0].ids
    stop = free[4]
    # Rows end at different steps; each is cut at its own end and the others go on.
    rows = texts(vlm, eos_id=stop)
    assert rows[0] == Generated(free[: free.index(stop)], ended=True)
    for row, generated in enumerate(rows):
        assert generated == naive_greedy(vlm, images()[row], PROMPTS[row], stop)
        assert stop not in generated.ids


def test_a_text_that_is_cut_says_so() -> None:
    generated = texts(tiny_vlm(), length=3)
    assert [len(g.ids) for g in generated if not g.ended] == [3] * len(PROMPTS)


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_streaming_gives_the_same_tokens_one_by_one(prompt: list[int]) -> None:
    vlm, patches = tiny_vlm(), images(1)
    vlm.language_model.generation_config.suppress_tokens = SUPPRESSED
    whole = texts(vlm, [prompt], patches)[0]
    tokens = stream(vlm, patches[0], prompt, eos_id=EOS, max_new_tokens=12, decoding=GREEDY)
    assert list(tokens) == whole.ids


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_streaming_draws_by_the_scores_of_the_whole_text_so_far(prompt: list[int]) -> None:
    vlm, patches = tiny_vlm(), images(1)
    vlm.language_model.generation_config.suppress_tokens = SUPPRESSED
    draw, ids = chooser(vlm, TOP_P, torch.device("cpu")), []
    while EOS not in ids and len(ids) < 12:
        ids.append(int(draw(naive_logits(vlm, patches[0], [*prompt, *ids]).unsqueeze(0))))
    tokens = stream(vlm, patches[0], prompt, eos_id=EOS, max_new_tokens=12, decoding=TOP_P)
    assert list(tokens) == [token for token in ids if token != EOS]
    assert not set(ids) & set(SUPPRESSED)


def test_streaming_stops_at_the_end_of_sequence_token_and_is_lazy() -> None:
    vlm, patches = tiny_vlm(), images(1)
    free = texts(vlm, [[5]], patches)[0].ids
    tokens = stream(vlm, patches[0], [5], eos_id=free[3], max_new_tokens=12, decoding=GREEDY)
    assert next(tokens) == free[0]
    assert list(tokens) == free[1 : free.index(free[3])]


def test_sampling_repeats_with_its_seed_and_leaves_the_global_state_alone() -> None:
    vlm = tiny_vlm()
    state = torch.get_rng_state()
    first, again = (texts(vlm, decoding=TOP_P) for _ in range(2))
    assert first == again
    assert torch.equal(torch.get_rng_state(), state)
    other = TopPConfig(top_p=0.9, temperature=0.8, seed=4)
    assert texts(vlm, decoding=other) != first


def test_sampling_from_the_smallest_nucleus_is_greedy() -> None:
    vlm = tiny_vlm()
    assert texts(vlm, decoding=TopPConfig(top_p=1e-6, temperature=1.0, seed=0)) == texts(vlm)


def test_words_are_drawn_as_often_as_they_are_likely() -> None:
    draw = chooser(tiny_vlm(), TopPConfig(top_p=1.0, temperature=2.0, seed=0), torch.device("cpu"))
    never = float("-inf")
    logits = torch.tensor([[never, 2.0, 4.0, never, 0.0, 5.0, never]])
    drawn = torch.cat([draw(logits) for _ in range(20_000)]).flatten()
    shares = drawn.bincount(minlength=7) / len(drawn)
    expected = (logits[0] / 2).softmax(dim=0)
    assert torch.equal(shares > 0, expected > 0)
    assert (shares - expected).abs().max() < 0.01  # three standard deviations


def test_rows_chosen_together_choose_as_alone() -> None:
    vlm, device = tiny_vlm(), torch.device("cpu")
    vlm.language_model.generation_config.suppress_tokens = SUPPRESSED
    seeded = TopPConfig(top_p=1.0, temperature=0.7, seed=0)
    kinds = [
        *(seeded.model_copy(update={"seed": seed}) for seed in range(20)),
        GREEDY,
        TOP_P,
        GREEDY,
    ]
    logits = torch.randn(len(kinds), 40, generator=torch.Generator().manual_seed(0))
    together, alone = ([chooser(vlm, kind, device) for kind in kinds] for _ in range(2))
    for _ in range(3):  # a generator goes on
        expected = torch.cat([each(row[None]) for each, row in zip(alone, logits, strict=True)])
        assert torch.equal(choose(together, logits), expected)
    assert len(set(expected[:20].flatten().tolist())) > 1


def test_the_nucleus_is_not_cut_by_a_default_top_k() -> None:
    vlm, patches = tiny_vlm(), images(1)
    even = TopPConfig(top_p=1.0, temperature=100.0, seed=0)
    draws = texts(vlm, [[5]] * 60, patches.expand(60, -1, -1), even, length=1)
    likeliest = naive_logits(vlm, patches[0], [5]).topk(50).indices.tolist()
    assert any(set(g.ids) - set(likeliest) for g in draws)


def test_wide_beam_search_finds_the_likeliest_text() -> None:
    vlm, patches, words = tiny_vlm(vocabulary=11), images(1), 11

    def log_probability(ids: tuple[int, ...]) -> float:
        return sum(
            naive_logits(vlm, patches[0], ids[:i]).log_softmax(-1)[token].item()
            for i, token in enumerate(ids)
        )

    open_texts = [p for p in itertools.product(range(words), repeat=2) if EOS not in p]
    ended_texts = [(EOS,), *((w, EOS) for w in range(words) if w != EOS)]
    best = max([*open_texts, *ended_texts], key=log_probability)
    wide = BeamConfig(beams=words, length_penalty=0.0)
    (found,) = texts(vlm, [[]], patches, wide, length=2)
    assert [*found.ids, *([EOS] if found.ended else [])] == list(best)


def test_one_beam_is_greedy() -> None:
    vlm = tiny_vlm()
    assert texts(vlm, decoding=BeamConfig(beams=1, length_penalty=1.0)) == texts(vlm)


def test_the_image_matters() -> None:
    vlm = tiny_vlm()
    one, other = texts(vlm, [[5, 6]] * 2)
    assert one != other


def test_training_mode_is_kept_and_does_not_touch_the_text() -> None:
    vlm = tiny_vlm()
    expected = texts(vlm)
    vlm.enable_gradient_checkpointing()
    vlm.train()
    assert texts(vlm) == expected
    assert vlm.training
    assert vlm.language_model.training


def test_no_prompts_give_no_texts() -> None:
    assert texts(tiny_vlm(), [], images(0)) == []


def test_requests_that_cannot_work_are_refused() -> None:
    vlm, patches = tiny_vlm(), images(2)
    with pytest.raises(ModelError, match="about 1 images, 2 are given"):
        texts(vlm, [[5]], patches)
    with pytest.raises(ModelError, match="takes 64"):
        texts(vlm, [[5], [6]], patches, length=90)
    with pytest.raises(ModelError, match="beam search knows its text only at the end"):
        stream(vlm, patches[0], [5], eos_id=EOS, max_new_tokens=3, decoding=BEAM)
