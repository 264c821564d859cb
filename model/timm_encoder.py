"""A frozen image encoder of timm that gives a grid of features: convolutional or a transformer.

Its folder is what timm itself writes for the Hub: `config.json` (architecture, and how an image is
prepared for these weights) and `model.safetensors`. Grid, width and depth are read from the model,
so that no table has to list it.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from model.encoder_table import TIMM
from model.errors import ModelError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_PREPROCESS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


class TimmShape(NamedTuple):
    """What a timm model gives for one image.

    Attributes:
        patches: Positions of the grid.
        width: Width of the features at a position.
        depth: Layers (blocks or stages) that features can be taken from.
        parameters: All parameters.
    """

    patches: int
    width: int
    depth: int
    parameters: int


class TimmTower:
    """The encoder of a folder.

    Args:
        folder: Folder in timm's layout.
        layer: -1 is what the model's own `forward_features` gives, its last norm or head
            convolution included; -2 is the layer before its last one, and so on.
        device: Where to compute.
        dtype: In which to compute.

    Attributes:
        preprocess: timm's transform for evaluation: resize, crop, tensor, normalise.
        depth: Layers that features can be taken from.

    Raises:
        ModelError: The folder lacks a file, or the model gives no grid of features.
    """

    def __init__(
        self, folder: Path, layer: int, device: str, dtype: torch.dtype = torch.float32
    ) -> None:
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ModelError(f"{folder} has no {name}: it is not a timm model")
        stated = json.loads((folder / CONFIG).read_text())
        trunk = _create(stated["architecture"], stated.get("num_classes"))
        _load(trunk, folder / WEIGHTS)
        self._trunk = trunk.eval().requires_grad_(False).to(device, dtype)
        self._layer, self._device, self._dtype = layer, device, dtype
        self.preprocess = create_transform(
            **resolve_data_config(pretrained_cfg=stated["pretrained_cfg"])
        )
        self.depth = _depth(trunk)

    def encode(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch patch vision"], Float[Tensor, "batch embed"]]:
        """Return features of one layer by position, and the pooled ones before a classifier."""
        return features(self._trunk, pixels.to(self._device, self._dtype), self._layer)


def features(trunk: Any, pixels: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Return features [batch, patch, vision] of a layer and pooled features [batch, embed].

    Raises:
        ModelError: They have no grid, or there is no such layer.
    """
    depth = _depth(trunk)
    if -layer > depth:
        raise ModelError(
            f"the encoder has {depth} layers, and layer {layer} was asked for",
            "set features.layer (of a second encoder features.second_layer) "
            f"to -{depth} or nearer to the last",
        )
    last = trunk.forward_features(pixels)
    pooled = trunk.forward_head(last, pre_logits=True)
    if layer == -1:
        return _by_position(last, trunk), pooled
    (made,) = trunk.forward_intermediates(
        pixels, indices=[depth + layer], output_fmt="NCHW", intermediates_only=True
    )
    return made.flatten(2).transpose(1, 2), pooled


def _by_position(made: Tensor, trunk: Any) -> Tensor:
    """Return features as [batch, patch, vision], whichever way a model lays them out."""
    if made.ndim == 3:
        return made[:, getattr(trunk, "num_prefix_tokens", 0) :]  # without class and registers
    if made.ndim != 4:
        raise ModelError(f"{type(trunk).__name__} gives no grid of features")
    last = str(getattr(trunk, "output_fmt", "NCHW")).endswith("NHWC")
    return made.flatten(1, 2) if last else made.flatten(2).transpose(1, 2)


@cache
def timm_shape(name: str, layer: int) -> TimmShape:
    """Return what a model gives at a layer, found on the meta device: no weights, no arithmetic.

    Args:
        name: `timm/` and timm's name of the architecture.
        layer: See `TimmTower`.

    Raises:
        ModelError: timm knows no such model, or it has no such layer or no grid.
    """
    with torch.device("meta"):
        trunk = _create(name.removeprefix(TIMM), None)
        pixels = torch.zeros(1, *resolve_data_config({}, model=trunk)["input_size"])
        made, _ = features(trunk.eval(), pixels, layer)
    parameters = sum(p.numel() for p in trunk.parameters())
    return TimmShape(made.shape[1], made.shape[2], _depth(trunk), parameters)


def write_timm(name: str, weights: Path, folder: Path, beside: str = "") -> int:
    """Write weights into a folder as timm keeps them and return the number of parameters.

    Args:
        name: `timm/` and timm's name of the architecture.
        weights: A `.safetensors` file on this machine.
        folder: Where to write.
        beside: Text of a `config.json` that came with the weights, which says how an image is
            prepared for them; "" without one, and then timm's own config of the architecture
            applies.

    Raises:
        ModelError: timm knows no such model, or weights or config do not fit it.
    """
    architecture = name.removeprefix(TIMM).partition(".")[0]
    stated = _stated(architecture, beside, weights)
    tensors = load_file(weights)
    classes = tensors.get("classifier.weight", tensors.get("head.weight", tensors.get("fc.weight")))
    count = stated.get("num_classes", len(classes) if classes is not None else None)
    trunk = _create(architecture, count)
    _load(trunk, weights)
    cfg = {**trunk.pretrained_cfg, **stated.get("pretrained_cfg", {})}
    prepared = resolve_data_config(pretrained_cfg=cfg)
    config = {
        "architecture": architecture,
        "num_classes": trunk.num_classes,
        "pretrained_cfg": {field: prepared[field] for field in _PREPROCESS},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True))
    save_file({k: v.contiguous() for k, v in trunk.state_dict().items()}, folder / WEIGHTS)
    return sum(parameter.numel() for parameter in trunk.parameters())


def _stated(architecture: str, beside: str, weights: Path) -> dict[str, Any]:
    """Return what the config beside the weights says, nothing where there is none."""
    if not beside:
        return {}
    try:
        stated = json.loads(beside)
        known = stated["architecture"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{weights.parent / CONFIG} is not a config of timm") from None
    if known != architecture:
        raise ModelError(f"{weights} is a '{known}', not a '{architecture}'")
    return stated


def _create(architecture: str, classes: int | None) -> Any:
    if not timm.is_model(architecture):
        raise ModelError(f"timm has no model '{architecture}'")
    kept: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    return timm.create_model(architecture, pretrained=False, **kept)


def _load(trunk: nn.Module, weights: Path) -> None:
    try:
        trunk.load_state_dict(load_file(weights))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(f"{weights} does not fit a {type(trunk).__name__}: {reason}") from None


def _depth(trunk: Any) -> int:
    return len(trunk.feature_info)
