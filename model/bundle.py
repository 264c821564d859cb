"""The published assistant: one folder with all that is needed to answer about a picture.

`bundle.json` describes it; `clip/` is an open_clip folder, `lm/` a Hugging Face folder, and
`vision_prefix.safetensors` the projector with its separator. Nothing in it is code or a pickle.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from model.decoding import decode_image
from model.encoder import PatchEncoder
from model.errors import ModelError
from model.generation import generate, stream
from model.generation_configs import BeamConfig, GenerationConfig, GreedyConfig
from model.language import forbid_ids, load_language_model
from model.projectors import ProjectorConfig
from model.prompt import PromptTemplate
from model.vlm import VisionLanguageModel, build_vlm

FORMAT = 1
BUNDLE = "bundle.json"
PREFIX = "vision_prefix.safetensors"
PREFIX_CONFIG = "vision_prefix.json"

Turn = tuple[str, str]


def load_vlm(
    lm_folder: Path,
    config_path: Path,
    prefix_path: Path,
    dtype: torch.dtype = torch.float32,
) -> VisionLanguageModel:
    """Return a vision-language model from its three parts on disk, in evaluation mode."""
    config = json.loads(config_path.read_text())
    projector = TypeAdapter(ProjectorConfig).validate_python(config["projector"])
    language_model = load_language_model(lm_folder, dtype)
    vlm = build_vlm(projector, config["vision_width"], config["patches"], language_model)
    vlm.vision_prefix.load_state_dict(load_file(prefix_path))
    return vlm.eval()


class Assistant:
    """Answers questions about pictures with a published bundle.

    Args:
        folder: The bundle.
        device: Where to compute.

    Raises:
        ModelError: The folder is no bundle, or one of another format.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        path = folder / BUNDLE
        if not path.is_file():
            raise ModelError(f"{folder} is no phivision bundle: it has no {BUNDLE}")
        self.card: dict[str, Any] = json.loads(path.read_text())
        if self.card.get("format") != FORMAT:
            raise ModelError(
                f"{path} has format {self.card.get('format')}, this phivision reads {FORMAT}"
            )
        self.device = device
        self.encoder = PatchEncoder(folder / "clip", self.card["layer"], device)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.vlm = load_vlm(folder / "lm", folder / PREFIX_CONFIG, folder / PREFIX, dtype)
        self.vlm.to(device)
        self.template = PromptTemplate.load(folder / "lm", **self.card["template"])
        forbid_ids(self.vlm.language_model, self.template.tokenizer.get_vocab_size())

    def see(self, picture: bytes) -> torch.Tensor:
        """Return the patch embeddings [patch, vision] of a picture file's content.

        Raises:
            BadImageError: The picture cannot be used.
        """
        image = decode_image(picture, self.card["max_pixels"])
        # The model was trained on embeddings that went through float16.
        return self.encoder.encode_images([image]).patches[0].half().float()

    def caption(self, pictures: Sequence[bytes]) -> list[str]:
        """Return a caption of each picture."""
        return self._write(pictures, [[] for _ in pictures])

    def ask(self, picture: bytes, question: str, history: Sequence[Turn] = ()) -> str:
        """Return the answer to a question about a picture, after earlier turns if there are any.

        Raises:
            ModelError: The question is empty or, with its history, too long.
        """
        return self._write([picture], [self._prompt(question, history)])[0]

    def stream(self, picture: bytes, question: str, history: Sequence[Turn] = ()) -> Iterator[str]:
        """Yield the answer as it grows: each value is the whole text so far."""
        prompt = self._prompt(question, history)
        written: list[int] = []
        for token in stream(
            self.vlm,
            self.see(picture).to(self.device),
            prompt,
            eos_id=self.template.eos_id,
            max_new_tokens=self.card["max_new_tokens"],
            decoding=GreedyConfig(),
        ):
            written.append(token)
            yield self.template.decode(written)

    def _prompt(self, question: str, history: Sequence[Turn]) -> list[int]:
        if not question.strip():
            raise ModelError("the question is empty: ask something about the picture")
        return self.template.question(" ".join(question.split()), history)

    def _write(self, pictures: Sequence[bytes], prompts: list[list[int]]) -> list[str]:
        patches = torch.stack([self.see(picture) for picture in pictures]).to(self.device)
        texts = generate(
            self.vlm,
            patches,
            prompts,
            eos_id=self.template.eos_id,
            max_new_tokens=self.card["max_new_tokens"],
            decoding=decoding_of(self.card["beams"]),
        )
        return [self.template.decode(text.ids) for text in texts]


def decoding_of(beams: int) -> GenerationConfig:
    """Return greedy decoding for one beam, beam search for more."""
    return GreedyConfig() if beams == 1 else BeamConfig(beams=beams, length_penalty=1.0)
