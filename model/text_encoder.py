"""The text tower of an open_clip model, whose embeddings are compared with those of images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.encoder import CONFIG
from model.errors import ModelError


class TextEncoder:
    """Texts in, embeddings in the space of the pooled image embeddings out (CLIP, Radford 2021).

    Raises:
        ModelError: The model has no text tower, or its tokenizer is not open_clip's own.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        if not (folder / CONFIG).is_file():
            raise ModelError(
                "the encoder is one of timm's, which has no text tower",
                "set features.clip_scores=false",
            )
        text = json.loads((folder / CONFIG).read_text())["model_cfg"]["text_cfg"]
        if "hf_tokenizer_name" in text:  # it would be looked for on the Hub
            raise ModelError(
                f"the encoder's tokenizer, {text['hf_tokenizer_name']}, is not in the store",
                "set features.clip_scores=false",
            )
        clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self._clip: Any = clip.eval().requires_grad_(False).to(device)
        self._tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
        self._device = device

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "text embed"]:
        """Return normalised float32 embeddings; what is beyond the context length is cut off."""
        embeddings = self._clip.encode_text(self._tokenizer(list(texts)).to(self._device))
        return nn.functional.normalize(embeddings.float(), dim=-1)
