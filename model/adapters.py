"""Low-rank adapters beside a language model, in peft's own file format."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from model.errors import ModelError
from model.language import merge_lora

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_OURS, _PEFTS = "language_model.", "base_model.model."


def save_adapter(
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: str | Sequence[str],
) -> None:
    """Write adapters as peft does, so that `PeftModel.from_pretrained` loads them.

    Args:
        weights: Tensors by their name in the vision-language model.
        folder: Gets `adapter_config.json` and `adapter_model.safetensors`.
        rank: Inner width of the adapters.
        alpha: Their product is scaled by alpha / rank.
        dropout: Share of their inputs that training dropped.
        targets: Names of the linear layers that have one, or peft's `all-linear`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else sorted(targets),
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    renamed = {
        _PEFTS + name.removeprefix(_OURS).replace(".default.", "."): tensor.contiguous()
        for name, tensor in weights.items()
    }
    save_file(renamed, folder / WEIGHTS)


def merge_adapter(language_model: PreTrainedModel, folder: Path) -> None:
    """Fold the adapters of a folder into a language model, in place.

    Merged in the type they were trained in, they give exactly the weights of the merged model.

    Raises:
        ModelError: The folder has no adapters, or those of another model.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {CONFIG} and {WEIGHTS}: it holds no adapters")
    config = LoraConfig.from_pretrained(str(folder))
    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        inject_adapter_in_model(config, language_model)
        trained = next(iter(weights.values())).dtype
        for name, parameter in language_model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(trained)
        named = {name.removeprefix(_PEFTS): tensor for name, tensor in weights.items()}
        loaded = set_peft_model_state_dict(language_model, named)
    missing = [name for name in loaded.missing_keys if "lora_" in name]
    if missing or loaded.unexpected_keys:
        raise ModelError(f"{folder} holds the adapters of another language model")
    merge_lora(language_model)
