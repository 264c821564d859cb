"""Load a vision-language model from the files of a bundle or of a training stage."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig

from model.bundle import read_projector
from model.language import load_language_model
from model.vlm import VisionLanguageModel, build_vlm


def load_vlm(
    lm_folder: Path,
    config_path: Path,
    prefix_path: Path,
    dtype: torch.dtype = torch.float32,
    quantization: BitsAndBytesConfig | None = None,
    device: str = "cpu",
) -> VisionLanguageModel:
    """Return a vision-language model from its three parts on disk, in evaluation mode.

    Args:
        lm_folder: The language model.
        config_path: Config of the vision prefix.
        prefix_path: Its weights, which stay in float32.
        dtype: Type of the language model's weights.
        quantization: How its linear layers are packed.
        device: Where the model is put.
    """
    config = json.loads(config_path.read_text())
    projector = read_projector(config_path)
    language_model = load_language_model(lm_folder, dtype, quantization, device)
    vlm = build_vlm(projector, config["vision_width"], config["patches"], language_model)
    # Bundles from before patches were centred have no such values: mean 0 and scale 1 stay.
    centre = dict(vlm.vision_prefix.named_buffers())
    vlm.vision_prefix.load_state_dict({**centre, **load_file(prefix_path)})
    vlm.vision_prefix.to(device)
    return vlm.eval()
