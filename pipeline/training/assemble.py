"""Assembling a vision-language model from artifacts, and writing its parts to files."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig

from model.bundle import PREFIX, PREFIX_CONFIG
from model.language_files import write_language_files
from model.vlm import VisionLanguageModel
from model.vlm_loading import load_vlm
from pipeline.engine.stage import InputArtifact


def load_pretrained(
    lm_folder: Path,
    trained: InputArtifact,
    dtype: torch.dtype = torch.float32,
    quantization: BitsAndBytesConfig | None = None,
    device: str = "cpu",
) -> VisionLanguageModel:
    """Return a model from a language model's folder and the prefix of a trained artifact."""
    files = trained.path(PREFIX_CONFIG), trained.path(PREFIX)
    return load_vlm(lm_folder, *files, dtype, quantization, device)


def save_prefix(vlm: VisionLanguageModel, pretrained: InputArtifact, folder: Path) -> None:
    """Write a model's prefix, with the unchanged config of the prefix it started from."""
    state = {name: tensor.contiguous() for name, tensor in vlm.vision_prefix.state_dict().items()}
    save_file(state, folder / PREFIX)
    shutil.copyfile(pretrained.path(PREFIX_CONFIG), folder / PREFIX_CONFIG)


def save_language_model(vlm: VisionLanguageModel, backbones: InputArtifact, folder: Path) -> None:
    """Write a language model in Hugging Face's layout, with the tokenizer it came with."""
    write_language_files(vlm.language_model, folder)
    source = backbones.directory("lm")
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".txt", ".jinja") and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
