"""CLIP's vision transformer in plain torch and Pillow, for commands that encode an image and end.

Importing open_clip takes 1.7 seconds of processor time, timm and Weights & Biases included, which
is more than a few images take. These modules have its names of weights and its arithmetic, so that
they give the same embeddings; tests compare both. The stage `features`, the chat and the server use
open_clip's own.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_TOWER = "visual."
_MODEL = frozenset({"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"})
_VISION = frozenset(
    {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "pool_type"}
)
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class LightEncoded(NamedTuple):
    """What an image becomes.

    Attributes:
        patches: [patch, vision] float32, rounded to float16 as in the feature store.
        pooled: [embed] float32; the normalised image embedding.
    """

    patches: Float[Tensor, "patch vision"]
    pooled: Float[Tensor, "embed"]


class _QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, inner))
        self.mlp.add_module("gelu", _QuickGelu() if quick_gelu else nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class _Tower(nn.Module):
    def __init__(self, model: dict[str, Any]) -> None:
        super().__init__()
        vision = model["vision_cfg"]
        width, side, patch = vision["width"], vision["image_size"], vision["patch_size"]
        self.pool = vision.get("pool_type", "tok")
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((side // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        heads = width // vision.get("head_width", 64)
        inner = int(width * vision.get("mlp_ratio", 4.0))
        quick_gelu = bool(model.get("quick_gelu"))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            _Block(width, heads, inner, quick_gelu=quick_gelu) for _ in range(vision["layers"])
        )
        self.proj = nn.Parameter(torch.empty(width, model["embed_dim"]))

    def forward(self, pixels: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return hidden states of a layer [1, patch, vision] and the embedding [1, embed]."""
        blocks = self.transformer.get_submodule("resblocks")
        assert isinstance(blocks, nn.ModuleList)
        x = self.conv1(pixels).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        states = [self.ln_pre(x + self.positional_embedding)]
        for block in blocks:
            states.append(block(states[-1]))
        last = self.ln_post(states[-1])
        pooled = last[:, 0] if self.pool == "tok" else last[:, 1:].mean(dim=1)
        return states[layer][:, 1:], pooled @ self.proj


class LightClip:
    """Patch and image embeddings of one image at a time, on the CPU.

    Args:
        folder: A folder for which `fits` is true.
        layer: Layer counted from the end, -1 the last.
    """

    def __init__(self, folder: Path, layer: int) -> None:
        config = json.loads((folder / CONFIG).read_text())
        model, prepared = config["model_cfg"], config["preprocess_cfg"]
        self._side, self._layer = model["vision_cfg"]["image_size"], layer
        self._filter = _FILTERS[prepared["interpolation"]]
        self._mean, self._deviation = (
            torch.tensor(prepared[name]).view(3, 1, 1) for name in ("mean", "std")
        )
        with torch.device("meta"):  # the weights are mapped from the file
            tower = _Tower(model)
        with safe_open(folder / WEIGHTS, "pt") as file:
            names = [name for name in file.keys() if name.startswith(_TOWER)]  # noqa: SIM118
            weights = {name.removeprefix(_TOWER): file.get_tensor(name).float() for name in names}
        tower.load_state_dict(weights, assign=True)
        self._tower = tower.eval().requires_grad_(False)

    def shrink(self, image: Image.Image) -> UInt8[np.ndarray, "side side 3"]:
        """Return an RGB image resized by its shorter side and cropped to the middle."""
        width, height = image.size
        short = min(width, height)
        size = tuple(int(self._side * length / short) for length in image.size)
        if short != self._side:
            image = image.resize((size[0], size[1]), self._filter)
        left, top = (round((length - self._side) / 2.0) for length in image.size)
        return np.asarray(image.crop((left, top, left + self._side, top + self._side)))

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> LightEncoded:
        """Return the embeddings of an RGB image."""
        planes = torch.from_numpy(self.shrink(image).copy()).permute(2, 0, 1).contiguous()
        pixels = planes.float().div_(255).sub_(self._mean).div_(self._deviation)
        patches, pooled = self._tower(pixels[None], self._layer)
        return LightEncoded(patches[0].half().float(), nn.functional.normalize(pooled[0], dim=-1))


def fits(folder: Path) -> bool:
    """Return whether a folder holds a CLIP of open_clip with nothing that `LightClip` lacks."""
    if not ((folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()):  # one of timm's
        return False
    config = json.loads((folder / CONFIG).read_text())
    model, prepared = config["model_cfg"], config["preprocess_cfg"]
    vision = model["vision_cfg"]
    return (
        model.keys() <= _MODEL
        and vision.keys() <= _VISION
        and all(isinstance(vision.get(name), int) for name in ("image_size", "layers"))
        and vision.get("pool_type", "tok") in ("tok", "avg")
        and prepared.get("resize_mode") == "shortest"
        and prepared.get("interpolation") in _FILTERS
        and all(isinstance(prepared.get(name), list) for name in ("mean", "std"))
    )
