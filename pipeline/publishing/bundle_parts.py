"""The parts of a bundle, read from its own files."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from model.bundle import PREFIX, PREFIX_CONFIG
from model.encoder import CONFIG, TIMM_CONFIG
from model.encoder_table import SECOND


def bundle_parts(folder: Path) -> dict[str, str]:
    """Return a phrase for each of a bundle's models, by its role."""
    prefix = json.loads((folder / PREFIX_CONFIG).read_text())
    language = json.loads((folder / "lm" / "config.json").read_text())
    projector = f"{prefix['projector']['kind']}, {_count([folder / PREFIX])} parameters"
    encoders = {
        "image encoder, frozen": f"{_encoder(folder / 'clip')}; {prefix['patches']} patches"
    }
    if (folder / SECOND).is_dir():
        shared = f"joined to the first on one grid of {prefix['patches']} patches"
        encoders["second image encoder, frozen"] = f"{_encoder(folder / SECOND)}; {shared}"
    return {
        **encoders,
        "projector": projector,
        "language model": f"{language['model_type']}, "
        f"{_count((folder / 'lm').glob('*.safetensors'))} parameters",
    }


def _encoder(folder: Path) -> str:
    by_timm = folder / TIMM_CONFIG
    if by_timm.is_file():
        return f"timm/{json.loads(by_timm.read_text())['architecture']}"
    vision: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    tower = vision["model_cfg"]["vision_cfg"]
    return f"CLIP, {tower['layers']} layers of width {tower['width']}"


def _count(files: Iterable[Path]) -> str:
    """Return the number of values in safetensors files."""
    total = 0
    for path in files:
        with safe_open(path, framework="numpy") as tensors:
            names = tensors.keys()
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return f"{total:,}" if total < 1e6 else f"{total / 1e6:,.1f} million"
