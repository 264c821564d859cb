"""Pretraining as transformers' own LLaVA does it in a plain loop: what ours is compared with.

CLIP works on pixels in every step, every caption is a row of its own that is padded to the longest
of its batch, and logits are computed for the whole vocabulary at every position. Images are given
as tensors that are ready, so that reading and decoding them costs this side nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PhiConfig,
)

IGNORED = -100  # transformers' label of positions that are no target


@dataclass(frozen=True)
class TinySizes:
    """The demo's backbones, but for the vocabulary.

    Attributes:
        words: Size of the vocabulary.
        width: Width of the language model.
        layers: Its layers.
        vision: Width of CLIP.
        image: Side of an image in pixels.
        patch: Side of a patch in pixels.
    """

    words: int
    width: int = 96
    layers: int = 3
    vision: int = 96
    image: int = 112
    patch: int = 16

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image // self.patch) ** 2

    def phi(self) -> PhiConfig:
        """The language model's config."""
        return PhiConfig(
            vocab_size=self.words,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=3,
            max_position_embeddings=1024,
            hidden_act="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attention_dropout=0.0,
        )

    def clip(self) -> CLIPVisionConfig:
        """The vision tower's config."""
        return CLIPVisionConfig(
            hidden_size=self.vision,
            intermediate_size=4 * self.vision,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=self.image,
            patch_size=self.patch,
        )


class PlainLlava:
    """transformers' LLaVA with a frozen tower and a frozen language model.

    Args:
        sizes: Its backbones.
        image_token: A token id that no text has; it stands for a patch.
    """

    def __init__(self, sizes: TinySizes, image_token: int) -> None:
        config = LlavaConfig(
            vision_config=sizes.clip(),
            text_config=sizes.phi(),
            image_token_index=image_token,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_seq_length=sizes.patches,
        )
        self.llava = LlavaForConditionalGeneration(config).train().requires_grad_(False)
        self.projector = self.llava.get_submodule("model.multi_modal_projector")
        self.projector.requires_grad_(True)
        self.image_token, self.patches = image_token, sizes.patches

    def loss(self, pixels: Tensor, captions: Sequence[Sequence[int]]) -> Tensor:
        """The mean loss per caption token of a batch.

        Args:
            pixels: Prepared images [caption, 3, side, side], one for each caption.
            captions: Token ids.
        """
        longest = self.patches + max(map(len, captions))
        # Any word pads, but not the image token, which may be 0.
        ids = torch.full((len(captions), longest), captions[0][0])
        ids[:, : self.patches] = self.image_token
        attention = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for row, caption in enumerate(captions):
            end = self.patches + len(caption)
            ids[row, self.patches : end] = torch.tensor(caption)
            labels[row, self.patches : end] = ids[row, self.patches : end]
            attention[row, :end] = 1
        found = self.llava(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=attention,
            labels=labels,
            use_cache=False,
        )
        return found.loss


def clip_tower(sizes: TinySizes) -> CLIPVisionModel:
    """The same vision tower by itself, frozen."""
    return CLIPVisionModel(sizes.clip()).eval().requires_grad_(False)
