"""Small real models as the Hub has them, and the stage `backbones` run on them.

`python -m tests.support.published_models FOLDER CONFIG [FIELD=VALUE…]` runs the stage alone, as a
process that can be killed.
"""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import open_clip
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from model.tiny_phi import train_tokenizer
from pipeline.engine.dag import BY_NAME
from pipeline.engine.materialize import Outcome, materialize
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from tests.support.fake_stages import Quiet

CLIP = "ViT-B-32-quickgelu"
CLIP_REPOSITORY = "timm/vit_base_patch32_clip_224.openai"
TEXTS = ["How many objects are there? Two.", "What colour is it? Red, green or blue."]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# What repositories hold beside the model, none of which belongs into an artifact.
BESIDE = MappingProxyType(
    {
        "README.md": b"# A small model",
        "modeling_small.py": b"raise SystemExit('this must never run')",
        "pytorch_model.bin": b"\x80\x04.",
        "training_args.bin": b"\x80\x04.",
        "onnx/config.json": b"{}",
        ".gitattributes": b"",
    }
)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@cache
def phi_files(seed: int = 0) -> Mapping[str, bytes]:
    """Return a Phi in several shards, with its tokenizer, a licence, and what lies beside it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = train_tokenizer(TEXTS, 300, folder).get_vocab_size()
        torch.manual_seed(seed)
        config = PhiConfig(vocab_size=vocabulary, intermediate_size=64, eos_token_id=0, **SHAPE)
        model = PhiForCausalLM(config)
        model.generation_config = GenerationConfig(eos_token_id=0)
        model.save_pretrained(folder, max_shard_size="50KB")
        return {**_files(folder), "LICENSE": b"MIT", **BESIDE}


@cache
def llama_files() -> Mapping[str, bytes]:
    """Return a Llama in one file whose output layer is its embedding."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = train_tokenizer(TEXTS, 300, folder).get_vocab_size()
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=vocabulary, intermediate_size=64, tie_word_embeddings=True, **SHAPE
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        return _files(folder)


@cache
def clip_files() -> Mapping[str, bytes]:
    """Return the weights and the config of the encoder of `small_clip`."""
    from model.encoder import save_clip

    with TemporaryDirectory() as name:
        torch.manual_seed(2)
        config = open_clip.get_model_config(CLIP)
        assert config is not None
        save_clip(open_clip.create_model(CLIP), config, Path(name))
        return {**_files(Path(name)), "open_clip_pytorch_model.bin": b"\x80\x04."}


def small_clip(folder: Path) -> Path:
    """Write a small architecture under the name of CLIP's, for `open_clip.add_model_config`."""
    config = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 8,
            "heads": 1,
            "layers": 1,
        },
    }
    path = folder / f"{CLIP}.json"
    path.write_text(json.dumps(config))
    return path


def published(**changes: object) -> Recipe:
    """Return the preset `coco` with a small language model, at its branch, and other changes."""
    fields = {f"backbones.{name}": value for name, value in changes.items()}
    small = {"backbones.lm_repository": "somebody/small-phi", "backbones.lm_revision": "main"}
    return preset("coco").override({**small, **fields})


def make_backbones(root: Path, recipe: Recipe, report: Quiet | None = None) -> Outcome:
    """Make the stage in a store and a work folder below `root`."""
    settings = Settings(store=str(root / "store"), workdir=root / "work", device="cpu")
    store = ArtifactStore(settings.store, settings.work / "cache")
    return materialize(BY_NAME["backbones"], recipe, {}, store, settings, report or Quiet())


if __name__ == "__main__":
    open_clip.add_model_config(Path(sys.argv[2]))
    chosen = dict(field.split("=", 1) for field in sys.argv[3:])
    outcome = make_backbones(Path(sys.argv[1]), published(**chosen))
    print(outcome.status, outcome.manifest.digest)
