"""The encoders of open_clip that a recipe can name: their shapes, and where their weights are.

Any vision transformer of open_clip has a line, read from the JSON file of its configuration; the
table has those whose weights are known by a tag. Nothing of open_clip is imported, because a recipe
is checked long before a model is loaded. A test holds each line of the table against open_clip's
own configuration.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple


class EncoderLine(NamedTuple):
    """What is known of an encoder before its weights are downloaded.

    Attributes:
        image: Side of the square it sees, in pixels.
        patch: Side of one patch, in pixels.
        width: Width of a patch embedding.
        layers: Transformer layers.
        tags: open_clip's names of weights that fit, each with its repository on the Hugging Face
            Hub; weights from another place fit too.
    """

    image: int
    patch: int
    width: int
    layers: int
    tags: Mapping[str, str]

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image // self.patch

    @property
    def patches(self) -> int:
        """Patch embeddings of one image."""
        return self.grid**2


_L, _T = "laion/CLIP-ViT-", "timm/vit_"
_OPENAI_B32 = {
    "openai": f"{_T}base_patch32_clip_224.openai",
    "metaclip_fullcc": f"{_T}base_patch32_clip_224.metaclip_2pt5b",
}
_OPENAI_B16 = {
    "openai": f"{_T}base_patch16_clip_224.openai",
    "metaclip_fullcc": f"{_T}base_patch16_clip_224.metaclip_2pt5b",
}
_OPENAI_L14 = {
    "openai": f"{_T}large_patch14_clip_224.openai",
    "metaclip_fullcc": f"{_T}large_patch14_clip_224.metaclip_2pt5b",
}
_LAION_B32 = {
    "laion2b_s34b_b79k": f"{_L}B-32-laion2B-s34B-b79K",
    "datacomp_xl_s13b_b90k": f"{_L}B-32-DataComp.XL-s13B-b90K",
}
_LAION_B16 = {
    "laion2b_s34b_b88k": f"{_L}B-16-laion2B-s34B-b88K",
    "datacomp_xl_s13b_b90k": f"{_L}B-16-DataComp.XL-s13B-b90K",
}
_LAION_L14 = {
    "laion2b_s32b_b82k": f"{_L}L-14-laion2B-s32B-b82K",
    "datacomp_xl_s13b_b90k": f"{_L}L-14-DataComp.XL-s13B-b90K",
}

# OpenAI's weights were trained with QuickGELU, those of others mostly with GELU.
ENCODERS = MappingProxyType(
    {
        "ViT-B-32": EncoderLine(224, 32, 768, 12, _LAION_B32),
        "ViT-B-32-quickgelu": EncoderLine(224, 32, 768, 12, _OPENAI_B32),
        "ViT-B-16": EncoderLine(224, 16, 768, 12, _LAION_B16),
        "ViT-B-16-quickgelu": EncoderLine(224, 16, 768, 12, _OPENAI_B16),
        "ViT-L-14": EncoderLine(224, 14, 1024, 24, _LAION_L14),
        "ViT-L-14-quickgelu": EncoderLine(224, 14, 1024, 24, _OPENAI_L14),
        "ViT-L-14-336-quickgelu": EncoderLine(
            336, 14, 1024, 24, {"openai": f"{_T}large_patch14_clip_336.openai"}
        ),
        "ViT-B-16-SigLIP": EncoderLine(224, 16, 768, 12, {"webli": "timm/ViT-B-16-SigLIP"}),
        "ViT-B-16-SigLIP-384": EncoderLine(384, 16, 768, 12, {"webli": "timm/ViT-B-16-SigLIP-384"}),
        "ViT-SO400M-14-SigLIP-384": EncoderLine(
            384, 14, 1152, 27, {"webli": "timm/ViT-SO400M-14-SigLIP-384"}
        ),
    }
)


def encoder_line(name: str) -> EncoderLine:
    """Return what is known of an encoder of open_clip.

    Raises:
        KeyError: open_clip has no vision transformer of that name.
    """
    return ENCODERS[name] if name in ENCODERS else _from_config(name)


def name_of_config(config: Mapping[str, Any]) -> str | None:
    """Return the name of an encoder whose configuration is `config`, None if there is none.

    Args:
        config: `model_cfg` of an `open_clip_config.json`.
    """
    for path in sorted(_configs().glob("*.json")):
        with suppress(KeyError):  # an architecture that a recipe cannot name
            if json.loads(path.read_text()) == config:
                encoder_line(path.stem)
                return path.stem
    return None


def _configs() -> Path:
    """Return open_clip's folder of configurations, a JSON file for each name."""
    spec = find_spec("open_clip")
    places = spec.submodule_search_locations if spec else None
    return Path(places[0] if places else "") / "model_configs"


@cache
def _from_config(name: str) -> EncoderLine:
    path = _configs() / f"{name}.json"
    if Path(name).name != name or not path.is_file():
        raise KeyError(name)
    config = json.loads(path.read_text())
    vision = config["vision_cfg"]
    sizes = [vision.get(field) for field in ("image_size", "patch_size", "width", "layers")]
    # Neither a tower of timm, nor a ResNet, nor CoCa, which pools its patches.
    if {"timm_model_name", "attentional_pool"} & vision.keys() or "multimodal_cfg" in config:
        raise KeyError(name)
    if not all(isinstance(size, int) for size in sizes):
        raise KeyError(name)
    image, patch, width, layers = sizes
    return EncoderLine(image, patch, width, layers, {})


SECOND = "second"  # folder of a second encoder in artifacts and bundles, beside `clip`
TIMM = "timm/"  # before timm's name of an architecture, in `backbones.clip_name`


def is_timm(name: str) -> bool:
    """Return whether an encoder's name is one of timm's, whose shape is read from the model."""
    return name.startswith(TIMM)


def is_place(pretrained: str) -> bool:
    """Return whether a choice of weights names a place (path, URL, repository), not a tag."""
    return "/" in pretrained or pretrained.endswith(".safetensors") or pretrained[:1] in {"~", "."}
