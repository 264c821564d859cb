"""Which layers of which language model are adapted, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from model.adapters import merge_adapter, save_adapter
from model.errors import ModelError
from model.language import adapted_layers, add_lora, merge_lora
from pipeline.errors import RecipeError
from pipeline.recipe.presets import preset

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def llama() -> PreTrainedModel:
    """Return a Llama of two layers with grouped heads and tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True
    )
    return LlamaForCausalLM(config).eval()


def phi() -> PreTrainedModel:
    """Return a Phi of two layers."""
    return PhiForCausalLM(PhiConfig(**SIZES, num_attention_heads=4)).eval()


@pytest.mark.parametrize(("made", "kinds"), [(llama, 7), (phi, 6)])
def test_all_linear_adapts_every_layer_but_the_output(
    made: Callable[[], PreTrainedModel], kinds: int
) -> None:
    model = made()
    adapted = add_lora(model, rank=2, alpha=4, dropout=0.0, targets="all-linear")
    assert adapted == (2 * kinds, 2 * kinds)
    names = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert len(names) == 2 * kinds
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_some_layers_of_all_are_counted() -> None:
    adapted = add_lora(llama(), rank=2, alpha=4, dropout=0.0, targets=("q_proj", "mlp.up_proj"))
    assert adapted == (4, 14)


def test_a_name_of_no_layer_is_refused_beside_one_that_matches() -> None:
    with pytest.raises(ModelError) as told:
        add_lora(llama(), rank=2, alpha=4, dropout=0.0, targets=("q_proj", "dense", "fc1"))
    assert str(told.value) == (
        "finetune.lora_targets: no linear layer has the name dense, fc1\n"
        "  → use some of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, "
        "or all-linear for all of them"
    )


def test_the_output_layer_is_no_target() -> None:
    with pytest.raises(ModelError, match="no linear layer has the name lm_head"):
        add_lora(llama(), rank=2, alpha=4, dropout=0.0, targets=("lm_head",))


def test_adapters_of_all_layers_load_again_and_merge_to_the_same(tmp_path: Path) -> None:
    trained = llama()
    add_lora(trained, rank=2, alpha=4, dropout=0.0, targets="all-linear")
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    weights = {f"language_model.{n}": p for n, p in trained.named_parameters() if "lora_" in n}
    save_adapter(weights, tmp_path, rank=2, alpha=4, dropout=0.0, targets="all-linear")
    assert adapted_layers(trained) == (14, 14)
    merge_lora(trained)
    assert adapted_layers(trained) == (0, 14)
    again = llama()
    merge_adapter(again, tmp_path)
    ids = torch.arange(6).unsqueeze(0)
    assert torch.equal(again(input_ids=ids).logits, trained(input_ids=ids).logits)


@pytest.mark.parametrize("name", ["demo", "coco", "small", "photos"])
def test_presets_adapt_all_layers_and_names_can_be_given(name: str) -> None:
    recipe = preset(name)
    assert recipe.finetune.lora_targets == "all-linear"
    named = recipe.override({"finetune.lora_targets": '["q_proj"]'})
    assert named.finetune.lora_targets == ("q_proj",)
    assert named.override({"finetune.lora_targets": "all-linear"}) == recipe
    with pytest.raises(RecipeError, match="lora_targets"):
        recipe.override({"finetune.lora_targets": "[]"})
