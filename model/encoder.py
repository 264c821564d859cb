"""The patch encoder: a frozen vision tower from a folder in open_clip's or timm's layout.

An open_clip folder holds `open_clip_config.json` and `open_clip_model.safetensors`, as open_clip's
own `local-dir:` schema reads them, whether they are OpenAI's weights or a tiny model of the demo.
Any other folder is timm's (`model.timm_encoder`).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from jaxtyping import Float, UInt8
from open_clip.push_to_hf_hub import save_config_for_hf as save_clip_config
from open_clip.transform import MaybeConvertMode
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, ToTensor

from model.encoder_table import ENCODERS
from model.errors import ModelError
from model.timm_encoder import CONFIG as TIMM_CONFIG
from model.timm_encoder import WEIGHTS as TIMM_WEIGHTS
from model.timm_encoder import TimmTower

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")
_DTYPES = MappingProxyType({"fp32": torch.float32, "bf16": torch.bfloat16})


class Encoded(NamedTuple):
    """What the encoder returns for a batch of images.

    Attributes:
        patches: [batch, patch, vision] float32; hidden states of one layer, without the class
            token, before the final layer norm; of timm's models see `TimmTower`.
        pooled: [batch, embed] float32; the normalised image embedding of open_clip, or the pooled
            features before a classifier.
    """

    patches: Float[Tensor, "batch patch vision"]
    pooled: Float[Tensor, "batch embed"]


class PatchEncoder:
    """Images in, patch embeddings out; deterministic and without gradients.

    The last bits of an embedding depend on the size of the batch, because a matrix product of
    another size may add up in another order; `encode_shrunk` therefore fills every batch up to one
    size. Which images share a batch then makes no difference; a test checks this.

    Args:
        folder: Folder in open_clip's or timm's layout.
        layer: Layer counted from the end, -1 the last. LLaVA takes -2.
        device: Where to compute.
        precision: fp32, or bf16 for weights and activations. Features of bf16 are a little
            different; their type is float32 all the same.

    Attributes:
        resize: Resizes and crops one RGB image as the weights expect; uses only Pillow.

    Raises:
        ModelError: The folder holds no such model.
    """

    def __init__(
        self, folder: Path, layer: int, device: str = "cpu", precision: str = "fp32"
    ) -> None:
        self.layer, self.device = layer, device
        self._tower = _tower(folder, layer, device, _DTYPES[precision])
        preprocess = self._tower.preprocess
        self.preprocess: Callable[[Image.Image], Tensor] = preprocess
        self.resize, self._mean, self._deviation = _split(preprocess)
        self.fingerprint = encoder_fingerprint(folder, layer, precision)

    def prepare(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """Return one RGB image resized, cropped and normalised as the weights expect."""
        return self.preprocess(image)

    def shrink(self, image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
        """Return one RGB image resized and cropped but not normalised: a quarter of the bytes.

        It uses only Pillow and numpy, so many threads can run it beside torch's own.
        """
        return np.asarray(self.resize(image))

    def encode_shrunk(
        self, pixels: UInt8[np.ndarray, "batch height width 3"], size: int
    ) -> Encoded:
        """Return exactly the embeddings that `encode_images` gives, of images from `shrink`.

        Args:
            pixels: At most `size` images.
            size: Images of the forward pass; what is missing is filled with black.
        """
        count = len(pixels)
        if count < size:
            pixels = np.concatenate([pixels, np.zeros((size - count, *pixels.shape[1:]), np.uint8)])
        planes = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).contiguous()
        scaled = planes.float().div_(255)
        mean, deviation = self._mean.to(self.device), self._deviation.to(self.device)
        encoded = self.encode(scaled.sub_(mean).div_(deviation))
        return Encoded(encoded.patches[:count], encoded.pooled[:count])

    @torch.inference_mode()
    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> Encoded:
        """Return patch embeddings and pooled embeddings of prepared images."""
        patches, pooled = self._tower.encode(pixels)
        return Encoded(patches.float(), nn.functional.normalize(pooled.float(), dim=-1))

    def encode_images(self, images: Sequence[Image.Image]) -> Encoded:
        """Return the embeddings of RGB images."""
        return self.encode(torch.stack([self.prepare(image) for image in images]))

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self._tower.depth


class _ClipTower:
    """The vision tower of an open_clip folder, with the methods of `TimmTower`."""

    def __init__(self, folder: Path, layer: int, device: str, dtype: torch.dtype) -> None:
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ModelError(f"{folder} has no {name}: it is not an open_clip model")
        clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self._visual: Any = clip.visual.eval().requires_grad_(False).to(device, dtype)
        self._layer, self._device, self._dtype = layer, device, dtype
        self.preprocess: Any = preprocess
        trunk = getattr(self._visual, "trunk", None)  # SigLIP's tower is one of timm's
        self.depth = len(self._visual.transformer.resblocks if trunk is None else trunk.blocks)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches [batch, patch, vision] and image embeddings [batch, embed]."""
        outputs = self._visual.forward_intermediates(
            pixels.to(self._device, self._dtype),
            indices=[self.depth + self._layer],
            stop_early=False,
            normalize_intermediates=False,
            output_fmt="NLC",
        )
        return outputs["image_intermediates"][0], outputs["image_features"]


def _tower(folder: Path, layer: int, device: str, dtype: torch.dtype) -> TimmTower | _ClipTower:
    return (TimmTower if _is_timm(folder) else _ClipTower)(folder, layer, device, dtype)


def _is_timm(folder: Path) -> bool:
    return (folder / TIMM_CONFIG).is_file() and not (folder / CONFIG).is_file()


def _split(preprocess: Any) -> tuple[Compose, Tensor, Tensor]:
    """Return what a transform does to an RGB image, then mean and deviation [3, 1, 1]."""
    *images, scale, normalise = preprocess.transforms
    images = [step for step in images if not isinstance(step, MaybeConvertMode)]
    if not isinstance(scale, ToTensor) or not isinstance(normalise, Normalize):
        raise ModelError(f"the encoder's transform does not end by normalising: {preprocess}")
    mean, deviation = torch.as_tensor(normalise.mean), torch.as_tensor(normalise.std)
    return Compose(images), mean.view(3, 1, 1), deviation.view(3, 1, 1)


def save_clip(clip: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Write a CLIP in open_clip's own layout, as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_clip_config(clip, folder / CONFIG, config)  # ty: ignore[invalid-argument-type]
    weights = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
    save_file(weights, folder / WEIGHTS)


def write_clip(name: str, weights: Path, folder: Path, tag: str = "", beside: str = "") -> int:
    """Write weights into a folder as open_clip keeps them and return the number of parameters.

    Args:
        name: open_clip's name of the architecture.
        weights: A `.safetensors` file on this machine.
        folder: Where to write.
        tag: open_clip's tag of the weights, which says how images are normalised; "" for
            others, which take that from the config beside them, else from the published weights
            of the architecture.
        beside: Text of an `open_clip_config.json` that came with the weights, "" without one.

    Raises:
        ModelError: open_clip knows no such model, or the weights or the config do not fit it.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise ModelError(f"open_clip has no model '{name}'")
    preprocess = _published(name, tag) if tag else _own(name, config, beside, weights)
    try:
        clip = open_clip.create_model(
            name, pretrained=str(weights), force_preprocess_cfg=preprocess or None
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{weights} does not fit a model '{name}': {reason}") from error
    save_clip(clip, config, folder)
    return sum(parameter.numel() for parameter in clip.parameters())


def _published(name: str, tag: str) -> dict[str, Any]:
    """Return how images are prepared for the weights of a tag."""
    known = open_clip.get_pretrained_cfg(name, tag)
    return {field: known[field] for field in _PREPROCESS if field in known}


def _own(name: str, config: dict[str, Any], beside: str, weights: Path) -> dict[str, Any]:
    """Return how images are prepared for weights without a tag."""
    if not beside:
        published = (
            [_published(name, tag) for tag in ENCODERS[name].tags] if name in ENCODERS else []
        )
        return published[0] if published and all(each == published[0] for each in published) else {}
    try:
        stated = json.loads(beside)
        own, preprocess = stated["model_cfg"], dict(stated.get("preprocess_cfg", {}))
        quick = bool(own.get("quick_gelu"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{weights.parent / CONFIG} is not a config of open_clip") from None
    # Other sizes are refused when the weights are loaded; another activation is silently wrong.
    if quick != bool(config.get("quick_gelu")):
        raise ModelError(
            f"{weights} was trained {'with' if quick else 'without'} QuickGELU, "
            f"unlike a model '{name}'"
        )
    return {field: preprocess[field] for field in _PREPROCESS if field in preprocess}


def encoder_fingerprint(folder: Path, layer: int, precision: str = "fp32") -> str:
    """Return the identity of everything that determines a given image's patch embeddings.

    That is the weights, the architecture with its preprocessing (mean, deviation, size, crop,
    interpolation), the layer, the precision, and this file's own conventions.
    """
    hashed = hashlib.sha256()
    by_timm = _is_timm(folder)
    with (folder / (TIMM_WEIGHTS if by_timm else WEIGHTS)).open("rb") as stream:
        while chunk := stream.read(4 * 2**20):
            hashed.update(chunk)
    config = json.loads((folder / (TIMM_CONFIG if by_timm else CONFIG)).read_text())
    transform = "timm-transform" if by_timm else "open_clip-transform/no-post-norm"
    computed = str(_DTYPES[precision]).removeprefix("torch.")
    identity = {
        "weights": hashed.hexdigest(),
        "config": config,
        "layer": layer,
        "conventions": f"pillow-decode/{transform}/{computed}-to-float16",
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
