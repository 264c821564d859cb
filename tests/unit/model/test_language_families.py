"""Language models of many families: what ours computes is what transformers itself computes."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from model.batch import Batch
from model.errors import ModelError
from model.flops import size_of
from model.generation import generate
from model.generation_configs import GreedyConfig
from model.language import add_lora, load_language_model, merge_lora
from model.projectors import Mlp2xGeluConfig
from model.vlm import VisionLanguageModel, build_vlm, embedding_scale
from tests.unit.model.test_shared_rows import PATCHES, VISION, VOCABULARY, Story, asked, story

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
TIED = {**GROUPED, "tie_word_embeddings": True}
NARROW = {**GROUPED, "head_dim": 8}

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "phi": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**TIED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**TIED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**NARROW)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**NARROW)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**NARROW, final_logit_softcapping=2.0, query_pre_attn_scalar=8)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3,
            resid_pdrop=0.0, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    ),
}  # fmt: skip
each_family = pytest.mark.parametrize("family", FAMILIES)
TOLD = story([(5, 3, 6), (7, 1), (5,)])


def vlm_of(family: str) -> VisionLanguageModel:
    torch.manual_seed(0)
    language_model = FAMILIES[family]().eval()
    if language_model._supports_sdpa:
        language_model.set_attn_implementation("sdpa")
    return build_vlm(Mlp2xGeluConfig(), VISION, PATCHES, language_model).eval()


def by_transformers(vlm: VisionLanguageModel, batch: Batch) -> torch.Tensor:
    """The loss of each target from the language model's own logits, example by example."""
    prefix = vlm.embed_images(batch.patches).tokens
    found = []
    for row in range(len(batch.input_ids)):
        length = int(batch.attention[row].sum())
        ids = batch.input_ids[row : row + 1, :length]
        joint = torch.cat([prefix[row : row + 1], vlm.embed_text(ids)], dim=1)
        logits = vlm.language_model(inputs_embeds=joint).logits[0].float()
        before = prefix.shape[1] - 1
        nll = cross_entropy(logits[before : before + length], ids[0], reduction="none")
        found.append(nll[batch.supervised[row, :length]])
    return torch.cat(found)


@each_family
def test_the_loss_is_that_of_the_models_own_logits(family: str) -> None:
    vlm, batch = vlm_of(family), TOLD.alone()
    torch.testing.assert_close(vlm(batch), by_transformers(vlm, batch), rtol=1e-4, atol=1e-4)


@each_family
@pytest.mark.parametrize("told", [TOLD, asked(TOLD, 4)], ids=["plain", "asked"])
def test_examples_in_a_shared_row_are_scored_as_if_alone(family: str, told: Story) -> None:
    vlm = vlm_of(family)
    torch.testing.assert_close(vlm(told.shared()), vlm(told.alone()), rtol=1e-4, atol=1e-4)


@each_family
def test_it_writes_what_its_own_logits_say(family: str) -> None:
    vlm = vlm_of(family)
    patches = TOLD.patches[:1]
    [written] = generate(
        vlm, patches, [[5, 7]], eos_id=1, max_new_tokens=6, decoding=GreedyConfig()
    )
    ids = [5, 7]
    for expected in written.ids:
        joint = torch.cat(
            [vlm.embed_images(patches).tokens, vlm.embed_text(torch.tensor([ids]))], dim=1
        )
        assert int(vlm.language_model(inputs_embeds=joint).logits[0, -1].argmax()) == expected
        ids.append(expected)
    assert written.ids


# GPT-2 has no linear layers: its own are transposed.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
def test_adapters_learn_and_merge(family: str) -> None:
    vlm = vlm_of(family)
    adapted = add_lora(vlm.language_model, rank=2, alpha=4, dropout=0.0, targets="all-linear")
    assert adapted.layers == adapted.linears > 0
    head = vlm.language_model.get_output_embeddings()
    assert not any(p.requires_grad for p in head.parameters())
    vlm(TOLD.shared()).sum().backward()
    trained = [p for p in vlm.language_model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_(std=0.05)
    before = vlm(TOLD.alone())
    merge_lora(vlm.language_model)
    torch.testing.assert_close(vlm(TOLD.alone()), before, rtol=1e-3, atol=1e-3)


@each_family
def test_the_prefix_has_the_scale_of_what_enters_the_layers(family: str) -> None:
    vlm = vlm_of(family)
    words = vlm.embed_text(torch.arange(VOCABULARY)).square().mean().sqrt()
    assert embedding_scale(vlm.language_model) == pytest.approx(words.item(), rel=1e-3)


@each_family
def test_a_saved_model_is_loaded_with_an_attention_that_it_has(family: str, tmp_path: Path) -> None:
    FAMILIES[family]().save_pretrained(tmp_path)
    model = load_language_model(tmp_path)
    assert model.config._attn_implementation == ("sdpa" if model._supports_sdpa else "eager")


@each_family
def test_its_size_is_counted(family: str) -> None:
    vlm = vlm_of(family)
    size = size_of(vlm, PATCHES + 1)
    layers = [n for n, _ in vlm.language_model.named_parameters() if ".0." in n or ".1." in n]
    assert layers
    assert size.head.frozen + size.head.trained == VOCABULARY * 32
    assert size.layers.frozen + size.layers.trained > 0


def test_a_model_that_scales_its_scores_is_refused() -> None:
    with pytest.raises(ModelError, match="scales its scores"):
        build_vlm(Mlp2xGeluConfig(), VISION, PATCHES, CohereForCausalLM(CohereConfig(**SIZES)))


def test_a_model_without_a_causal_body_is_refused() -> None:
    config = T5Config(vocab_size=VOCABULARY, d_model=32, num_layers=1, num_heads=2, d_kv=8)
    with pytest.raises(ModelError, match="use a causal language model"):
        build_vlm(Mlp2xGeluConfig(), VISION, PATCHES, T5ForConditionalGeneration(config))


def test_stories_hold_what_is_compared() -> None:
    assert sum(len(row) for row in TOLD.ids) == len([*chain(*TOLD.ids)]) == 6
