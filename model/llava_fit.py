"""Which models the LLaVA class of transformers can hold; read before training: imports no torch."""

from collections.abc import Mapping
from typing import Any

PROJECTORS = ("linear", "mlp2x_gelu")
# Families, by `model_type`, whose output layer has no bias and whose scores are its plain product.
LANGUAGE_FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3")
# What open_clip may say of a tower that transformers' CLIP tower computes alike. How patches are
# pooled does not change them.
_TOWER = frozenset(
    {
        *("image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"),
        *("pool_type", "final_ln_after_pool", "output_tokens"),
    }
)
# Fields that say nothing where they have these values.
_UNSET = (None, False, 0, 0.0)
_INSTEAD = "choose a vision transformer such as ViT-B-32-quickgelu or ViT-L-14-336-quickgelu"
_LANGUAGE_INSTEAD = "choose a Llama or Qwen, e.g. HuggingFaceTB/SmolLM2-360M-Instruct"


def projector_obstacle(kind: str) -> str:
    """Return why a projector cannot be exported, "" if LLaVA has the same."""
    if kind in PROJECTORS:
        return ""
    return (
        f"pretrain.projector.kind is {kind}, and LLaVA's projector is two plain layers: "
        "choose mlp2x_gelu or linear"
    )


def encoder_obstacle(name: str) -> str:
    """Return why an encoder of this name in a recipe cannot be exported, "" if it can."""
    if name.startswith("timm/") or "SigLIP" in name:
        return f"backbones.clip_name is {name}, whose tower is one of timm: {_INSTEAD}"
    return ""


def tower_obstacle(config: Mapping[str, Any]) -> str:
    """Return why an encoder with this `open_clip_config.json` cannot be exported, "" if it can.

    Args:
        config: The content of the file; empty where the encoder is one of timm.
    """
    if not config:
        return f"backbones.clip_name is an encoder of timm: {_INSTEAD}"
    vision = config["model_cfg"]["vision_cfg"]
    unlike = [name for name, value in vision.items() if name not in _TOWER and value not in _UNSET]
    preprocess = config.get("preprocess_cfg", {})
    if preprocess.get("resize_mode", "shortest") != "shortest":
        unlike.append("resize_mode")
    if unlike:
        return f"backbones.clip_name: its tower has {', '.join(sorted(unlike))}: {_INSTEAD}"
    return ""


def language_obstacle(family: str) -> str:
    """Return why a language model of this `model_type` cannot be exported, "" if it can."""
    if family in LANGUAGE_FAMILIES:
        return ""
    if family == "phi":
        reason = "is a Phi, whose output layer has a bias, which LLaVA's cannot have"
    else:
        reason = f"is a '{family}', and LLaVA takes {', '.join(LANGUAGE_FAMILIES)}"
    return f"backbones.lm_repository {reason}: {_LANGUAGE_INSTEAD}"


def tiny_obstacle() -> str:
    """Return why a language model that is trained with the assistant cannot be exported."""
    return (
        "backbones.kind is tiny, which trains a Phi, whose output layer has a bias, which LLaVA's "
        "cannot have: choose hub, with a Llama or Qwen in backbones.lm_repository"
    )


def second_obstacle(name: str) -> str:
    """Return why a second encoder cannot be exported, "" where there is none."""
    if not name:
        return ""
    return f'backbones.second_name is {name}, and LLaVA has one encoder: set it to ""'
