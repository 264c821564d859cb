"""Load, adapt and merge the language model, always a stock transformers class."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from model.errors import ModelError
from model.lora_linear import InPlaceLora

ALL_LINEAR = "all-linear"  # peft's own name for every linear layer but the output layer
Targets = Literal["all-linear"] | tuple[str, ...]

transformers_logging.disable_progress_bar()  # the pipeline shows its own


class Adapted(NamedTuple):
    """How many linear layers have adapters, and how many there are besides the output layer."""

    layers: int
    linears: int


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return how QLoRA quantizes frozen layers (Dettmers et al. 2023, arXiv 2305.14314).

    Args:
        dtype: Type that a layer is unpacked to when it computes.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def saved_dtype(folder: Path) -> torch.dtype:
    """Return the type in which the language model of a folder computes: that of its weights.

    What was trained in bf16 is saved in bf16, so this is also the type that it was trained in.
    Published weights in float16 compute in bf16, because Phi's attention overflows in float16.

    Args:
        folder: A folder in Hugging Face's layout.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    name = config.get("dtype") or config.get("torch_dtype")
    return torch.bfloat16 if name in ("bfloat16", "float16") else torch.float32


def check_language_model(folder: Path, title: str) -> None:
    """Check a model's config alone, before its weights are moved.

    Raises:
        ModelError: It is not a causal language model of transformers' own; a repository's code is
            never run.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(f"{title} needs code of its own, which is never run") from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"transformers does not know the model {title}: {reason}") from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{title} is a '{config.model_type}', not a causal language model")


def load_language_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    quantization: BitsAndBytesConfig | None = None,
    device: str = "cpu",
) -> PreTrainedModel:
    """Return the causal language model of a folder in Hugging Face's layout.

    Only safetensors are read and no code of the folder is run. The files are mapped and each
    tensor goes to its device in its type, so that the model is never in memory twice.

    Args:
        folder: The folder.
        dtype: Type of the weights.
        quantization: How its linear layers are packed; a packed model is on the CUDA device.
        device: Where the weights go.

    Raises:
        ModelError: The folder has no such model.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **({"quantization_config": quantization} if quantization else {}),
            **({} if device == "cpu" else {"device_map": {"": device}}),
        ).eval()
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} holds no language model: {error}") from None


def add_lora(
    language_model: PreTrainedModel,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: Targets,
) -> Adapted:
    """Freeze a language model and give its linear layers low-rank adapters, in place.

    The class of the model and its `.model` and `.lm_head` stay what they are.

    Args:
        language_model: The model.
        rank: Inner width of the adapters.
        alpha: Their product is scaled by alpha / rank.
        dropout: Share of their inputs that training drops.
        targets: Last names of the layers, or `all-linear` for every one but the output layer.

    Raises:
        ModelError: No linear layer has the name of a target.
    """
    language_model.requires_grad_(False)
    if targets != ALL_LINEAR:
        _check_targets(targets, _linears(language_model))
    chosen = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)
    if not getattr(language_model, "is_quantized", False):
        config._register_custom_module({nn.Linear: InPlaceLora})  # documented as experimental
    inject_adapter_in_model(config, language_model)
    # peft gives adapters the type of their layer, and bf16 would swallow most of Adam's steps.
    for parameter in language_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted_layers(language_model)


def adapted_layers(language_model: PreTrainedModel) -> Adapted:
    """Return how many linear layers have adapters that are not merged yet, and how many there are.

    The output layer is not counted.
    """
    adapted = [n for n, m in language_model.named_modules() if isinstance(m, LoraLayer)]
    inside = tuple(f"{name}." for name in adapted)
    plain = [name for name in _linears(language_model) if not name.startswith(inside)]
    return Adapted(len(adapted), len(adapted) + len(set(plain) - set(adapted)))


def _linears(language_model: PreTrainedModel) -> list[str]:
    """Return the full names of the linear layers, without the output layer."""
    head = language_model.get_output_embeddings()
    return [
        name
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]


def _check_targets(targets: Sequence[str], linears: Sequence[str]) -> None:
    """Refuse names that peft would silently skip where another one matches."""
    known = {name.rpartition(".")[2] for name in linears}
    # peft also takes the end of a full name: "mlp.up_proj".
    lost = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linears)]
    if lost or not targets:
        raise ModelError(
            f"finetune.lora_targets: no linear layer has the name {', '.join(lost) or '(none)'}",
            f"use some of {', '.join(sorted(known))}, or {ALL_LINEAR} for all of them",
        )


def merge_lora(language_model: PreTrainedModel) -> None:
    """Fold the adapters into the weights, in place, leaving the stock architecture."""
    adapted = [(n, m) for n, m in language_model.named_modules() if isinstance(m, LoraLayer)]
    for name, module in adapted:
        module.merge()
        parent = language_model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    # peft leaves its config on the model; a merged model must save as a plain one.
    if hasattr(language_model, "peft_config"):
        del language_model.peft_config
        language_model._hf_peft_config_loaded = False


def forbid_ids(language_model: PreTrainedModel, used: int) -> None:
    """Keep generation from choosing embedding rows that have no token.

    Phi-2's tokenizer ends at 50,295 and its embedding has 51,200 rows; the rest was never
    trained.
    """
    rows = len(language_model.get_input_embeddings().weight)  # ty: ignore[invalid-argument-type]
    if used < rows:
        language_model.generation_config.suppress_tokens = list(range(used, rows))
