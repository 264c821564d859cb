"""The dimensions of a language model from its config.json or GGUF header, for plans.

Values that a config leaves out are those of transformers' own classes. Neither transformers nor
torch is imported, as both take seconds.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from model.errors import ModelError
from model.language_table import LanguageLine, Layout

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "phi": "phi",
        "phi3": "phi3",
        "gpt_neox": "neox",
        **dict.fromkeys(
            (
                *("llama", "mistral", "smollm3", "stablelm", "olmo", "olmo2"),
                *("qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
            ),
            "llama",
        ),
    }
)
"""By `model_type` of the config, which is `general.architecture` of a GGUF header."""

# Activations that transformers computes in one kernel; others keep what each of their parts needs.
_FUSED = frozenset({"silu", "swish", "gelu", "gelu_pytorch_tanh", "relu", "tanh"})
_ACTIVATION: Mapping[Layout, str] = MappingProxyType({"phi": "gelu_new", "neox": "gelu"})
_TIED = frozenset({"gemma", "gemma2", "gemma3_text", "smollm3"})  # unless their config says no
_HEAD_256 = frozenset({"gemma", "gemma2", "gemma3_text"})  # width of a head where none is named
_GGUF_NAMES: Mapping[str, str] = MappingProxyType(
    {"gemma3": "gemma3_text", "gptneox": "gpt_neox", "phi2": "phi"}
)


def line_of_config(config: Mapping[str, Any], title: str) -> LanguageLine:
    """Return the dimensions of a language model.

    Raises:
        ModelError: The family is not one of `LAYOUTS`, or a size is missing.
    """
    family = config.get("model_type", "")
    layout = LAYOUTS.get(family)
    if layout is None:
        raise ModelError(
            f"{title} is of the family {family or '(none named)'}, whose layers are not known to "
            f"plans: known are {', '.join(LAYOUTS)}"
        )
    activation = config.get("hidden_activation") or config.get("hidden_act")
    head = config.get("head_dim") or (256 if family in _HEAD_256 else None)
    return LanguageLine(
        vocabulary=_size(config, "vocab_size", title),
        width=_size(config, "hidden_size", title),
        layers=_size(config, "num_hidden_layers", title),
        heads=_size(config, "num_attention_heads", title),
        inner=_size(config, "intermediate_size", title),
        positions=_size(config, "max_position_embeddings", title),
        fused_gelu=(activation or _ACTIVATION.get(layout, "silu")) in _FUSED,
        dropout=float(config.get("resid_pdrop") or config.get("hidden_dropout") or 0.0),
        groups=config.get("num_key_value_heads"),
        layout=layout,
        tied=bool(config.get("tie_word_embeddings", family in _TIED)),
        head_size=head,
    )


def line_of_gguf(path: Path) -> LanguageLine:
    """Return the dimensions of a language model from the header of a GGUF file.

    Raises:
        ModelError: The package `gguf` is missing, the file is not GGUF, or see `line_of_config`.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError(
            f"{path.name} is a GGUF file, for which the package gguf is missing",
            "pip install 'phivision[gguf]'",
        ) from None
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} is not a complete GGUF file: {error}") from None

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return field.contents() if field else None

    kind = str(value("general.architecture"))
    words = reader.get_field("tokenizer.ggml.tokens")
    rows = {"vocab_size": value(f"{kind}.vocab_size") or (len(words.data) if words else None)}
    sizes = {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "intermediate_size": "feed_forward_length",
        "max_position_embeddings": "context_length",
        "head_dim": "attention.key_length",
    }
    config = {name: value(f"{kind}.{key}") for name, key in sizes.items()}
    own_head = any(tensor.name == "output.weight" for tensor in reader.tensors)
    family = _GGUF_NAMES.get(kind, kind)
    return line_of_config(
        {**config, **rows, "model_type": family, "tie_word_embeddings": not own_head}, path.name
    )


def _size(config: Mapping[str, Any], field: str, title: str) -> int:
    value = config.get(field)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{title}: its config names no {field}")
    return value
