"""A Hub cache folder with models of the published ones' exact layout and random weights.

Nothing here needs a network: the layouts come from transformers and open_clip, the tokenizer from
the real data. The language model is written tensor by tensor and never held as a whole.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PhiConfig, PhiForCausalLM

COMMIT = "0123456789abcdef" * 2 + "01234567"
SHARD = 5_000_000_000  # bytes of a shard at most, as the Hub's own tools cut
EOS, EOS_ID = "<|endoftext|>", 50256
SPREAD = 0.02  # standard deviation of random matrices, which keeps activations finite
PHI_2: Mapping[str, Any] = {
    "vocab_size": 51_200,
    "hidden_size": 2560,
    "intermediate_size": 10_240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "hidden_act": "gelu_new",
    "partial_rotary_factor": 0.4,
    "resid_pdrop": 0.1,
    "bos_token_id": EOS_ID,
    "eos_token_id": EOS_ID,
}

Shapes = dict[str, tuple[int, ...]]


def write_phi(
    hub: Path,
    repository: str,
    revision: str,
    tokenizer: Path,
    config: Mapping[str, Any] = PHI_2,
    shard: int = SHARD,
) -> int:
    """Write a Phi in float16 into a Hub cache and return how many parameters it has.

    Args:
        hub: The cache, e.g. `$HF_HOME/hub`.
        repository: Its name, owner/name.
        revision: A commit, or a branch, which will point at one.
        tokenizer: Folder with CodeGen's `vocab.json`, `merges.txt` and `added_tokens.json`.
        config: Its dimensions.
        shard: Bytes of a shard, at most.
    """
    folder = _snapshot(hub, repository, revision)
    with torch.device("meta"):
        model = PhiForCausalLM(PhiConfig(**config))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names, generator = {}, torch.Generator().manual_seed(0)
    shards = list(_shards(shapes, shard))
    for number, part in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_float16(folder / name, part, generator)
        names |= dict.fromkeys(part, name)
    total = sum(math.prod(shape) for shape in shapes.values())
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": 2 * total}, "weight_map": names},
    )
    described = model.config.to_dict() | {"architectures": ["PhiForCausalLM"]}
    described.pop("dtype", None)
    _write_json(folder / "config.json", described | {"torch_dtype": "float16"})
    ends = {"bos_token_id": EOS_ID, "eos_token_id": EOS_ID}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
    _write_tokenizer(tokenizer, folder)
    return total


def write_clip(hub: Path, name: str, tag: str) -> None:
    """Write an open_clip model with random weights where open_clip looks for a tag's."""
    repository = get_pretrained_cfg(name, tag)["hf_hub"].strip("/")
    folder = _snapshot(hub, repository, "main")
    torch.manual_seed(0)
    clip = open_clip.create_model(name)
    weights = {key: tensor.contiguous() for key, tensor in clip.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(name)}
    _write_json(folder / "open_clip_config.json", config)


def _snapshot(hub: Path, repository: str, revision: str) -> Path:
    """Make a repository's folder for a revision; a branch gets its pointer."""
    root = hub / f"models--{repository.replace('/', '--')}"
    commit = revision if len(revision) == len(COMMIT) else COMMIT
    if commit != revision:
        pointer = root / "refs" / revision
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.write_text(commit)
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _shards(shapes: Shapes, limit: int) -> Iterator[Shapes]:
    part: Shapes = {}
    size = 0
    for name, shape in shapes.items():
        needed = 2 * math.prod(shape)
        if part and size + needed > limit:
            yield part
            part, size = {}, 0
        part[name], size = shape, size + needed
    yield part


def _write_float16(path: Path, shapes: Shapes, generator: torch.Generator) -> None:
    """Write a safetensors file of random tensors, one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            stream.write(_random(name, shape, generator).numpy().tobytes())


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        fill = torch.ones if "norm" in name and name.endswith("weight") else torch.zeros
        return fill(shape, dtype=torch.float16)
    return torch.randn(shape, generator=generator).mul_(SPREAD).half()


def _write_tokenizer(source: Path, folder: Path) -> None:
    """Write `tokenizer.json` as Phi-2's repository has it."""
    model = models.BPE.from_file(str(source / "vocab.json"), str(source / "merges.txt"))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(EOS, normalized=False)])
    added = json.loads((source / "added_tokens.json").read_text("utf-8"))
    blanks = sorted((text for text in added if text != EOS), key=added.__getitem__)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in blanks])
    tokenizer.save(str(folder / "tokenizer.json"))
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
