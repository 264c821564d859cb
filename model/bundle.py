"""The published assistant on disk: one folder with all that is needed to answer about an image.

`bundle.json` describes it; `clip/` is a folder of open_clip or timm, `second/` one of a second
encoder, if there is one, `lm/` a Hugging Face folder, and `vision_prefix.safetensors` the projector
with its separator. Nothing in it is code or a pickle.
`model.assistant` opens it.
"""

import json
from pathlib import Path

from pydantic import TypeAdapter

from model.generation_configs import BeamConfig, GenerationConfig, GreedyConfig
from model.projectors import ProjectorConfig

FORMAT = 1
TWO_ENCODERS = 2  # the format of a bundle with `second/`, which earlier readers would overlook
BUNDLE = "bundle.json"
PREFIX = "vision_prefix.safetensors"
PREFIX_CONFIG = "vision_prefix.json"


def read_projector(config_path: Path) -> ProjectorConfig:
    """Return the config of the projector in the config of a vision prefix."""
    config = json.loads(config_path.read_text())
    return TypeAdapter(ProjectorConfig).validate_python(config["projector"])


def decoding_of(beams: int) -> GenerationConfig:
    """Return greedy decoding for one beam, beam search for more."""
    return GreedyConfig() if beams == 1 else BeamConfig(beams=beams, length_penalty=1.0)
