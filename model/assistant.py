"""The published assistant: it sees an image and writes a caption or an answer.

`load_assistant("hf://owner/name")` or `load_assistant("folder")` is all that a user of a bundle
needs. It reads safetensors and JSON; no code of the bundle is run.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from model.adapters import merge_adapter
from model.bundle import (
    BUNDLE,
    FORMAT,
    PREFIX,
    PREFIX_CONFIG,
    TWO_ENCODERS,
    decoding_of,
    load_vlm,
)
from model.decoding import decode_image
from model.errors import ModelError
from model.generation import generate, stream
from model.generation_configs import GreedyConfig
from model.joined_encoders import JoinedEncoders
from model.language import forbid_ids, saved_dtype
from model.prompt import IMAGE_MARK, MARKER, PromptTemplate, placed
from model.training_reference import load_reference
from model.vlm import VisionLanguageModel

HUB = "hf://"
# What is fetched from a hub: the parts of a bundle, and nothing else from its repository.
PARTS = (
    *("bundle.json", "README.md", "vision_prefix.*", "reference.*"),
    *("clip/*", "second/*", "lm/*", "adapter/*", "examples/*"),
)

Turn = tuple[str, str]
Image = bytes | torch.Tensor  # a file's content, or its patch embeddings from `Assistant.see`
Images = Image | Sequence[Image]  # of one question


class Assistant:
    """Answers questions about images with a published bundle.

    Args:
        folder: The bundle.
        device: Where to compute.

    Raises:
        ModelError: The folder is not a bundle, or has another format.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        path = folder / BUNDLE
        if not path.is_file():
            raise ModelError(f"{folder} is not a phivision bundle: it has no {BUNDLE}")
        self.card: dict[str, Any] = json.loads(path.read_text())
        if self.card.get("format") not in (FORMAT, TWO_ENCODERS):
            raise ModelError(
                f"{path} has format {self.card.get('format')}, this phivision reads {FORMAT} and "
                f"{TWO_ENCODERS}"
            )
        self.folder, self.device = folder, device
        layers = [self.card[name] for name in ("layer", "second_layer") if name in self.card]
        self.encoders = JoinedEncoders(folder, layers, self.card["patches"], device)
        self.vlm = _load(folder, self.card, device)
        self.template = PromptTemplate.load(folder / "lm", **self.card["template"])
        self.reference = load_reference(folder, self.card)
        forbid_ids(self.vlm.language_model, self.template.tokenizer.get_vocab_size())

    def see(self, data: bytes) -> torch.Tensor:
        """Return the patch embeddings [patch, vision] of an image file's content.

        Raises:
            BadImageError: The image cannot be used.
        """
        image = decode_image(data, self.card["max_pixels"])
        return self.encoders.encode([image])[0]

    def warning(self, patches: torch.Tensor) -> str:
        """Return a sentence if an image is unlike the training images, "" where it is like them.

        Older bundles, which have no reference, never warn.

        Args:
            patches: The image's patch embeddings from `see`.
        """
        return "" if self.reference is None else self.reference.warning(patches)

    @property
    def most_images(self) -> int:
        """How many images a question may be about: as many as in training."""
        return int(self.card.get("max_images", 1))

    def caption(self, images: Sequence[Image]) -> list[str]:
        """Return a caption of each image."""
        return self._write(images, [self.template.caption_prompt] * len(images))

    def ask(self, images: Images, question: str, history: Sequence[Turn] = ()) -> str:
        """Return the answer to a question about an image, after earlier turns if there are any.

        Args:
            images: The image, or several. They stand in front of the conversation; a first question
                that says `<image>` once for each of several images has them where it says so, as
                in training.
            question: What to answer.
            history: Earlier questions about the images, with their answers. The oldest ones are
                left out where not all fit.

        Raises:
            ModelError: The question is empty, too long or not valid text, or there are more images
                than the assistant has learned to see at a time.
        """
        seen = _listed(images)
        return self._write(seen, [self.prompt(question, history, len(seen))])[0]

    def stream(
        self, images: Images, question: str | None, history: Sequence[Turn] = ()
    ) -> Iterator[str]:
        """Yield the answer as it grows: each value is the whole text so far, the last one `ask`'s.

        Beam search, where the card asks for it, knows its text only at the end and yields once.

        Args:
            images: See `ask`.
            question: What to answer; None asks for a caption of the first image.
            history: See `ask`.

        Raises:
            ModelError: See `ask`.
        """
        seen, prompt = _listed(images), self.template.caption_prompt
        if question is None:
            seen = seen[:1]
        else:
            prompt = self.prompt(question, history, len(seen))
        decoding = decoding_of(self.card["beams"])
        if not isinstance(decoding, GreedyConfig):
            yield self._write(seen, [prompt])[0]
            return
        written: list[int] = []
        for token in stream(
            self.vlm,
            torch.stack([self._patches(image) for image in seen]),
            prompt,
            eos_id=self.template.eos_id,
            max_new_tokens=self.card["max_new_tokens"],
            decoding=decoding,
        ):
            written.append(token)
            yield self.template.decode(written)

    @cached_property
    def room(self) -> int:
        """Tokens that a question and its history may have, between one image and the answer."""
        return int(self.vlm.max_positions) - self._prefix - self.card["max_new_tokens"]

    @cached_property
    def _prefix(self) -> int:
        """Tokens of an image, the separator included."""
        width = json.loads((self.folder / PREFIX_CONFIG).read_text())["vision_width"]
        with torch.no_grad():
            patches = torch.zeros(1, self.card["patches"], width, device=self.device)
            return self.vlm.embed_images(patches).tokens.shape[1]

    def prompt(self, question: str, history: Sequence[Turn] = (), images: int = 1) -> list[int]:
        """Return the token ids after which the answer to a question is written.

        Args:
            question: See `ask`.
            history: See `ask`.
            images: How many images the conversation is about.

        Raises:
            ModelError: See `ask`.
        """
        if images > self.most_images:
            raise ModelError(
                f"{images} images, but this assistant has learned to see {self.most_images} at a "
                "time: ask about fewer"
            )
        if not question.strip():
            raise ModelError("the question is empty: ask something about the image")
        if not all(map(is_text, (question, *chain.from_iterable(history)))):
            raise ModelError("the question has an incomplete character: write it as UTF-8 text")
        turns = [(" ".join(each.split()), answer) for each, answer in (*history, (question, ""))]
        more = images - 1
        if more and MARKER in turns[0][0]:
            more, first = placed(turns[0][0])
            turns[0] = (first, turns[0][1])
        if (named := more + turns[0][0].count(IMAGE_MARK)) != images - 1:
            raise ModelError(
                f"the question says {MARKER} {named + 1} times and there are {images} images: say "
                "it once for each, or not at all"
            )
        room = self.room - (images - 1) * self._prefix
        for oldest in range(len(turns)):
            ids = self.template.question(turns[-1][0], turns[oldest:-1], more)
            # A first question that names images stays, since they are shown in it.
            if len(ids) <= room or IMAGE_MARK in turns[oldest][0]:
                break
        if len(ids) > room:
            raise ModelError(
                f"the question is too long: it has {len(ids)} tokens and {room} fit, shorten it"
            )
        return ids

    def _patches(self, image: Image) -> torch.Tensor:
        patches = self.see(image) if isinstance(image, bytes) else image
        return patches.to(self.device)

    def _write(self, images: Sequence[Image], prompts: list[list[int]]) -> list[str]:
        patches = torch.stack([self._patches(image) for image in images])
        texts = generate(
            self.vlm,
            patches,
            prompts,
            eos_id=self.template.eos_id,
            max_new_tokens=self.card["max_new_tokens"],
            decoding=decoding_of(self.card["beams"]),
        )
        return [self.template.decode(text.ids) for text in texts]


def _listed(images: Images) -> list[Image]:
    """Return the images of a question as a list."""
    return [images] if isinstance(images, bytes | torch.Tensor) else list(images)


def is_text(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8; lone surrogates, as in argv, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
