"""An assistant of a small bundle that answers once and ends, without slow imports.

Where a bundle has an ordinary CLIP and a Phi, this gives the answers of `model.assistant.Assistant`
without importing transformers, open_clip or peft. `ask` and `caption` use it.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model import light_clip, light_phi
from model.assistant_base import AssistantBase
from model.bundle import BUNDLE, FORMAT, PREFIX, PREFIX_CONFIG, read_projector
from model.decoding import decode_image
from model.errors import ModelError
from model.light_clip import LightClip
from model.light_phi import LightPhi
from model.vision_prefix import VisionPrefix

# Fields of a card that ask for what only `Assistant` does.
_MORE = ("adapter", "second_layer", "text_only", "caption_samples")


class LightAssistant(AssistantBase):
    """Answers questions about one image on the CPU, greedily.

    Args:
        folder: A bundle; `light_assistant` checks it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._clip = LightClip(folder / "clip", self.card["layer"])
        self._phi = LightPhi(folder / "lm")
        self.max_positions = self._phi.max_positions
        config = json.loads((folder / PREFIX_CONFIG).read_text())
        self._seen = (config["patches"], config["vision_width"])
        # Random weights of any scale will do: the file has them all.
        width = self._phi.width
        projector = read_projector(folder / PREFIX_CONFIG).build(*reversed(self._seen), width, 1.0)
        self._prefix = VisionPrefix(projector, config["vision_width"], width, 1.0).eval()
        centre = dict(self._prefix.named_buffers())
        self._prefix.load_state_dict({**centre, **load_file(folder / PREFIX)})

    @cached_property
    def prefix(self) -> int:
        """Tokens of an image, the separator included."""
        return self._prefixes([torch.zeros(self._seen)]).shape[1]

    def see(self, data: bytes) -> Float[Tensor, "patch vision"]:
        """Return the patch embeddings of an image file's content.

        Raises:
            BadImageError: The image cannot be used.
        """
        return self._clip.encode(decode_image(data, self.card["max_pixels"])).patches

    def ask(self, images: Sequence[Tensor], question: str) -> str:
        """Return the answer to a question about an image.

        Args:
            images: The patch embeddings of the image, from `see`.
            question: What to answer.

        Raises:
            ModelError: See `Assistant.stream`.
        """
        return self._write(images, self.prompt(question, images=len(images)))[0]

    def caption(self, images: Sequence[Tensor]) -> list[str]:
        """Return a caption of each image, given its patch embeddings from `see`."""
        return self._write(images, self.template.caption_prompt)

    def _write(self, images: Sequence[Tensor], prompt: list[int]) -> list[str]:
        prefixes, longest = self._prefixes(images), self.card["max_new_tokens"]
        positions = prefixes.shape[1] + len(prompt) + longest
        if positions > self.max_positions:
            raise ModelError(
                f"{positions} positions, but the language model takes {self.max_positions}"
            )
        texts = self._phi.write(
            prefixes,
            prompt,
            words=self.template.tokenizer.get_vocab_size(),
            eos_id=self.template.eos_id,
            max_new_tokens=longest,
        )
        return [self.template.decode(text) for text in texts]

    @torch.inference_mode()
    def _prefixes(self, images: Sequence[Tensor]) -> Float[Tensor, "image token language"]:
        return self._prefix(torch.stack(list(images))).tokens


def light_assistant(folder: Path) -> LightAssistant | None:
    """Return the light assistant of a bundle, None where it would not answer as `Assistant` does.

    Anything unusual, a broken bundle too, is left to `Assistant`, which says what is wrong.
    """
    try:
        card = json.loads((folder / BUNDLE).read_text())
        fits = (
            card["format"] == FORMAT
            and card["beams"] == 1
            and card.get("max_images", 1) == 1
            and not any(card.get(name) for name in _MORE)
            and light_clip.fits(folder / "clip")
            and light_phi.fits(folder / "lm")
        )
        return LightAssistant(folder) if fits else None
    # Of the last two, one is weights of other names or shapes, one a file that is cut short.
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError):
        return None
