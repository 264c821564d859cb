"""The published assistant on disk: one folder with all that is needed to answer about an image.

`bundle.json` describes it; `clip/` is a folder of open_clip or timm, `second/` one of a second
encoder, if there is one, `lm/` a Hugging Face folder, and `vision_prefix.safetensors` the projector
with its separator. Nothing in it is code or a pickle.
`model.assistant` opens it.
"""

import json
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig

from model.generation_configs import BeamConfig, GenerationConfig, GreedyConfig
from model.language import load_language_model
from model.projectors import ProjectorConfig
from model.vlm import VisionLanguageModel, build_vlm

FORMAT = 1
TWO_ENCODERS = 2  # the format of a bundle with `second/`, which earlier readers would overlook
BUNDLE = "bundle.json"
PREFIX = "vision_prefix.safetensors"
PREFIX_CONFIG = "vision_prefix.json"


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


def read_projector(config_path: Path) -> ProjectorConfig:
    """Return the config of the projector in the config of a vision prefix."""
    config = json.loads(config_path.read_text())
    return TypeAdapter(ProjectorConfig).validate_python(config["projector"])


def decoding_of(beams: int) -> GenerationConfig:
    """Return greedy decoding for one beam, beam search for more."""
    return GreedyConfig() if beams == 1 else BeamConfig(beams=beams, length_penalty=1.0)
