"""Phi for answering only, in plain torch, for commands that answer once and end.

Importing transformers' `PhiForCausalLM` takes 1.6 seconds of processor time, which is more than a
small model's answer. These modules have its names of weights and its arithmetic, so that they write
the same text; tests compare both. Training, evaluation, the chat and the server use transformers'.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
# Fields of generation_config.json that do not change which token is chosen.
_HARMLESS = frozenset(
    {
        *("_from_model_config", "transformers_version", "use_cache"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
        *("output_attentions", "output_hidden_states"),
    }
)


def _gelu_new(x: Tensor) -> Tensor:
    # In transformers' order: torch's own approximation rounds differently.
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
    return 0.5 * x * (1.0 + torch.tanh(inner))


_ACTIVATIONS = {"relu": functional.relu, "gelu": functional.gelu, "gelu_new": _gelu_new}

Cached = tuple[Tensor, Tensor]  # keys and values of a layer, [row, head, position, head width]


class _Attention(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, rope = config["hidden_size"], config["rope_parameters"]
        self.head = width // config["num_attention_heads"]
        self.q_proj, self.k_proj, self.v_proj, self.dense = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.rotated = int(self.head * rope["partial_rotary_factor"])
        self.theta = rope["rope_theta"]

    def forward(self, x: Tensor, past: Cached | None) -> tuple[Tensor, Cached]:
        split = (*x.shape[:-1], -1, self.head)
        q, k, v = (
            project(x).view(split).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        start = 0 if past is None else past[0].shape[2]
        q, k = self._rotate(q, start), self._rotate(k, start)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        made = functional.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.dense(made.transpose(1, 2).reshape(x.shape)), (k, v)

    def _rotate(self, x: Tensor, start: int) -> Tensor:
        """Rotate the first channels of each head by their position (rotary embeddings)."""
        steps = torch.arange(0, self.rotated, 2, dtype=torch.float) / self.rotated
        places = torch.arange(start, start + x.shape[2], dtype=torch.float)
        angles = (places[:, None] * (1.0 / self.theta**steps)).repeat(1, 2)
        turned, kept = x[..., : self.rotated], x[..., self.rotated :]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
        return torch.cat([turned, kept], dim=-1)


class _Mlp(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config["hidden_act"]]
        self.fc1 = nn.Linear(config["hidden_size"], config["intermediate_size"])
        self.fc2 = nn.Linear(config["intermediate_size"], config["hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class _Layer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config["hidden_size"], config["layer_norm_eps"])
        self.self_attn, self.mlp = _Attention(config), _Mlp(config)

    def forward(self, x: Tensor, past: Cached | None) -> tuple[Tensor, Cached]:
        normed = self.input_layernorm(x)
        attended, cached = self.self_attn(normed, past)
        return attended + self.mlp(normed) + x, cached


class _Body(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        # Given weights, it draws none: torch imports its compiler to draw them on the device meta.
        words = torch.empty(config["vocab_size"], config["hidden_size"])
        self.embed_tokens = nn.Embedding.from_pretrained(words)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config["num_hidden_layers"]))
        self.final_layernorm = nn.LayerNorm(config["hidden_size"], config["layer_norm_eps"])


class LightPhi(nn.Module):
    """A Phi in float32 on the CPU that writes the likeliest text.

    Args:
        folder: A folder for which `fits` is true.

    Attributes:
        max_positions: Positions that it was made for.
        width: Hidden width.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = json.loads((folder / CONFIG).read_text())
        self.max_positions, self.width = config["max_position_embeddings"], config["hidden_size"]
        with torch.device("meta"):  # the weights are mapped from the file
            self.model = _Body(config)
            self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"])
        weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        self.load_state_dict(weights, assign=True)

    @torch.inference_mode()
    def write(
        self,
        prefixes: Float[Tensor, "row prefix language"],
        prompt: Sequence[int],
        *,
        words: int,
        eos_id: int,
        max_new_tokens: int,
    ) -> list[list[int]]:
        """Return the token ids written after each prefix and a prompt, the likeliest at each step.

        Args:
            prefixes: What stands before the prompt.
            prompt: Token ids.
            words: Tokens of the tokenizer; further rows of the embedding are never chosen.
            eos_id: Token that ends a text; it is left out.
            max_new_tokens: Tokens after which a text is cut, counting the ending one.
        """
        asked = self.model.embed_tokens(torch.tensor(prompt, dtype=torch.long))
        new = torch.cat([prefixes, asked.expand(len(prefixes), -1, -1)], dim=1)
        past: list[Cached | None] = [None] * len(self.model.layers)
        texts = torch.empty(len(prefixes), 0, dtype=torch.long)
        for _ in range(max_new_tokens):
            chosen = self._step(new, past)[:, :words].argmax(dim=-1, keepdim=True)
            texts = torch.cat([texts, chosen], dim=1)
            if (texts == eos_id).any(dim=1).all():
                break
            new = self.model.embed_tokens(chosen)
        return [_until(row, eos_id) for row in texts.tolist()]

    def _step(
        self, x: Float[Tensor, "row new language"], past: list[Cached | None]
    ) -> Float[Tensor, "row word"]:
        """Return scores of the next token, and keep keys and values of the new positions."""
        for number, layer in enumerate(self.model.layers):
            x, past[number] = layer(x, past[number])
        return self.lm_head(self.model.final_layernorm(x[:, -1]))


def fits(folder: Path) -> bool:
    """Return whether a folder holds a Phi in float32 with nothing that `LightPhi` lacks."""
    if not (folder / WEIGHTS).is_file():  # sharded weights, for one
        return False
    config = json.loads((folder / CONFIG).read_text())
    generation = folder / GENERATION
    settings = json.loads(generation.read_text()) if generation.is_file() else {}
    rope = config.get("rope_parameters") or {}
    return (
        config.get("model_type") == "phi"
        and config.get("dtype") == "float32"
        and config.get("num_key_value_heads") == config.get("num_attention_heads")
        and config.get("hidden_act") in _ACTIVATIONS
        and not config.get("qk_layernorm")
        and not config.get("tie_word_embeddings")
        and not config.get("quantization_config")
        and rope.keys() == {"rope_type", "rope_theta", "partial_rotary_factor"}
        and rope["rope_type"] == "default"
        and settings.keys() <= _HARMLESS
    )


def _until(row: list[int], eos_id: int) -> list[int]:
    return row[: row.index(eos_id)] if eos_id in row else row
