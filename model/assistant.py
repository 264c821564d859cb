"""The published assistant: it sees an image and writes a caption or an answer.

`load_assistant("hf://owner/name")` or `load_assistant("folder")` is all that a user of a bundle
needs. It reads safetensors and JSON; no code of the bundle is run.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from model.adapters import merge_adapter
from model.asked import Turn
from model.assistant_base import AssistantBase
from model.bundle import PREFIX, PREFIX_CONFIG, decoding_of
from model.caption_consensus import CaptionConsensus, load_consensus
from model.decoding import decode_image
from model.errors import ModelError
from model.generation import generate, stream
from model.generation_configs import BeamConfig, GenerationConfig, TopPConfig
from model.joined_encoders import JoinedEncoders
from model.language import forbid_ids, saved_dtype
from model.shrink import Pixels
from model.vlm import VisionLanguageModel
from model.vlm_loading import load_vlm

HUB = "hf://"
# What is fetched from a hub: the parts of a bundle, and nothing else from its repository.
PARTS = (
    *("bundle.json", "README.md", "vision_prefix.*", "reference.*", "consensus.*"),
    *("clip/*", "second/*", "lm/*", "adapter/*", "examples/*"),
)

Image = bytes | torch.Tensor  # a file's content, or its patch embeddings from `Assistant.see`
Images = Image | Sequence[Image]  # of one question


class Assistant(AssistantBase):
    """Answers questions about images with a published bundle.

    Args:
        folder: The bundle.
        device: Where to compute.

    Raises:
        ModelError: The folder is not a bundle, or has another format.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        super().__init__(folder)
        self.device = device
        layers = [self.card[name] for name in ("layer", "second_layer") if name in self.card]
        self.encoders = JoinedEncoders(folder, layers, self.card["patches"], device)
        self.vlm = _load(folder, self.card, device)
        self.max_positions = self.vlm.max_positions
        forbid_ids(self.vlm.language_model, self.template.tokenizer.get_vocab_size())

    def see(self, data: bytes) -> torch.Tensor:
        """Return the patch embeddings [patch, vision] of an image file's content.

        Raises:
            BadImageError: The image cannot be used.
        """
        return self.encoders.encode_shrunk([self.pixels(data)])[0]

    def pixels(self, data: bytes) -> Pixels:
        """Return an image as `encoders.encode_shrunk` takes it; safe for use by several threads.

        Raises:
            BadImageError: The image cannot be used.
        """
        return self.encoders.shrink(decode_image(data, self.card["max_pixels"]))

    def caption(self, images: Sequence[Image]) -> list[str]:
        """Return a caption of each image.

        Where the assistant was evaluated so, further ones are drawn, and the one is returned on
        which captions of similar training images agree. `stream` always writes the first one.
        """
        texts = self._write(images, [self.template.caption_prompt] * len(images))
        if self.consensus is None:
            return texts
        seen = self.shown(images)
        return [self._agreed(patches, text) for patches, text in zip(seen, texts, strict=True)]

    def _agreed(self, patches: torch.Tensor, first: str) -> str:
        """Return the caption of an image that agrees most with those of similar images."""
        assert self.consensus is not None
        count = self.card["caption_samples"]
        drawn = TopPConfig(top_p=1, temperature=self.card["sample_temperature"], seed=1)
        texts = [
            first,
            *self._write([patches] * count, [self.template.caption_prompt] * count, drawn),
        ]
        return texts[self.consensus.choose(patches, texts)]

    @cached_property
    def consensus(self) -> CaptionConsensus | None:
        """What captions are chosen by, None where each image has one only."""
        return load_consensus(self.folder) if self.card.get("caption_samples") else None

    def ask(self, images: Images | None, question: str, history: Sequence[Turn] = ()) -> str:
        """Return the answer to a question about an image, after earlier turns if there are any.

        Args:
            images: See `stream`.
            question: What to answer.
            history: See `stream`.

        Raises:
            ModelError: See `stream`.
        """
        seen = _listed(images)
        return self._write(seen, [self.prompt(question, history, images=len(seen))])[0]

    def stream(
        self,
        images: Images | None,
        question: str | None,
        history: Sequence[Turn] = (),
        *,
        decoding: GenerationConfig | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[str]:
        """Yield the answer as it grows: each value is the whole text so far, the last one `ask`'s.

        Beam search knows its text only at the end and yields once.

        Args:
            images: An image file's content, or its patch embeddings from `see`; several of them; or
                None, where `text_only` says so, for a text alone. Images stand in front of the
                conversation; a first question that says `<image>` once for each of several images
                has them where it says so, as in training.
            question: What to answer; None asks for a caption of the first image.
            history: Earlier questions about the images, with their answers. The oldest ones are
                left out where not all fit.
            decoding: How tokens are chosen; None as the card says.
            max_new_tokens: Tokens after which the answer is cut; None as the card says.

        Raises:
            ModelError: The question is empty, too long or not valid text, an image is missing, or
                there are more than the assistant has learned to see at a time.
        """
        longest = self.card["max_new_tokens"] if max_new_tokens is None else max_new_tokens
        seen, prompt = _listed(images), self.template.caption_prompt
        if question is not None:
            prompt = self.prompt(question, history, longest, len(seen))
        elif not seen:
            raise ModelError("a caption needs an image")
        decoding = decoding or decoding_of(self.card["beams"])
        yield from self._stream(
            seen if question is not None else seen[:1], prompt, decoding, longest
        )

    def _stream(
        self, seen: Sequence[Image], prompt: list[int], decoding: GenerationConfig, longest: int
    ) -> Iterator[str]:
        if isinstance(decoding, BeamConfig):
            yield self._write(seen, [prompt], decoding, longest)[0]
            return
        written: list[int] = []
        for token in stream(
            self.vlm,
            self.shown(seen),
            prompt,
            eos_id=self.template.eos_id,
            max_new_tokens=longest,
            decoding=decoding,
            has_image=bool(seen),
        ):
            written.append(token)
            yield self.template.decode(written)

    @cached_property
    def prefix(self) -> int:
        """Tokens of an image, the separator included."""
        with torch.no_grad():
            return self.vlm.embed_images(self.shown([])).tokens.shape[1]

    def shown(self, images: Sequence[Image]) -> torch.Tensor:
        """Return patch embeddings [image, patch, vision]; without images, zeros of one."""
        if not images:
            width = json.loads((self.folder / PREFIX_CONFIG).read_text())["vision_width"]
            return torch.zeros(1, self.card["patches"], width, device=self.device)
        seen = [self.see(image) if isinstance(image, bytes) else image for image in images]
        return torch.stack(seen).to(self.device)

    def _write(
        self,
        images: Sequence[Image],
        prompts: list[list[int]],
        decoding: GenerationConfig | None = None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        texts = generate(
            self.vlm,
            self.shown(images),
            prompts,
            eos_id=self.template.eos_id,
            max_new_tokens=max_new_tokens or self.card["max_new_tokens"],
            decoding=decoding or decoding_of(self.card["beams"]),
            has_image=bool(images),
        )
        return [self.template.decode(text.ids) for text in texts]


def _listed(images: Images | None) -> list[Image]:
    """Return the images of a question as a list."""
    if images is None:
        return []
    return [images] if isinstance(images, bytes | torch.Tensor) else list(images)


def load_assistant(source: str | Path, device: str = "cpu") -> Assistant:
    """Return the assistant of a bundle.

    Args:
        source: A folder, or `hf://owner/name[@revision]`, which is fetched from the Hugging Face
            Hub (a private one with the token that huggingface_hub finds).
        device: `cpu` or `cuda`.

    Raises:
        ModelError: There is no such bundle, or it cannot be fetched.
    """
    if not str(source).startswith(HUB):
        return Assistant(Path(source), device)
    from huggingface_hub import snapshot_download

    name, _, revision = str(source).removeprefix(HUB).partition("@")
    try:
        folder = snapshot_download(name, revision=revision or None, allow_patterns=list(PARTS))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{source} cannot be fetched: {reason}") from None
    return Assistant(Path(folder), device)


def _load(folder: Path, card: dict[str, Any], device: str) -> VisionLanguageModel:
    """Return the model in the type of its training, in which its scores were measured."""
    adapter = card.get("adapter")
    lm = folder / "lm"
    dtype = saved_dtype(lm) if adapter is None else getattr(torch, adapter["dtype"])
    vlm = load_vlm(lm, folder / PREFIX_CONFIG, folder / PREFIX, dtype, device=device)
    if adapter is not None:
        merge_adapter(vlm.language_model, folder / "adapter")
    return vlm
