"""A model of random weights and all that an evaluation asks it, for `evaluation_speed`."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from model.language_parts import body_of, head_of
from model.projectors import LinearConfig
from model.prompt import PromptTemplate
from model.tiny_phi import train_tokenizer
from model.vlm import VisionLanguageModel, build_vlm
from pipeline.data.schemas import OBJECTS
from pipeline.engine.processes import Files
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.evaluation_plan import EvaluationPlan
from pipeline.evaluation.pointing import Boxes
from pipeline.evaluation.scorers.pope import PresenceQuestion
from pipeline.evaluation.tasks import MarkedObjects, Task
from pipeline.recipe.presets import preset
from storage.tables import write_table
from tests.support.shown_images import key_of, write_images
from tests.support.tiny_bundle import TEXTS

PATCHES, VISION = 49, 64
WORDS = 100  # ids of prompts; from here on an id counts the tokens that are left
MARKS = 3  # columns of the word embeddings that hold the id
SHARE = 0.1  # of the captioned images, those with presence questions and a choice, as in `coco`


@dataclass(frozen=True)
class Sizes:
    """What is evaluated.

    Attributes:
        captions: Captions, each of an image of its own.
        questions: Questions, spread over the images.
        batch: `evaluate.batch`.
        longest: `evaluate.max_new_tokens`.
        layers: Layers of the language model.
        width: Its width, in heads of 64.
        vocabulary: Its words.
    """

    captions: int
    questions: int
    batch: int
    longest: int
    layers: int = 30
    width: int = 576
    vocabulary: int = 49152


def build_model(sizes: Sizes, dtype: torch.dtype) -> VisionLanguageModel:
    """Return a model of SmolLM2-135M's shape, or a smaller one, behind a small projector."""
    torch.manual_seed(0)
    heads = sizes.width // 64
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.width * 8 // 3,
        num_hidden_layers=sizes.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 or 1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    vlm = build_vlm(LinearConfig(), VISION, PATCHES, LlamaForCausalLM(config)).eval()
    with torch.no_grad():
        ids = torch.arange(sizes.vocabulary)
        marks = torch.stack([ids >> 7 * place & 127 for place in range(MARKS)], 1) / 128
        vlm.embed_text(ids[:1])  # the embedding exists
        vlm.language_model.get_input_embeddings().get_parameter("weight")[:, :MARKS] = marks
        vlm.vision_prefix.separator[:MARKS] = -1
    vlm.language_model.to(dtype)
    return vlm.requires_grad_(False)


def answer_lengths(rng: np.random.Generator, count: int, longest: int) -> np.ndarray:
    """Return tokens of answers: log-normal, with a median of 24 and a mean of about 31."""
    return rng.lognormal(np.log(24), 0.8, count).round().clip(2, 2 * longest).astype(int)


def caption_lengths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return tokens of captions: 13 on average, as COCO's have, 7 to 25."""
    return rng.normal(13, 2.5, count).round().clip(7, 25).astype(int)


class Lengths:
    """Makes a model of random weights end its texts, where a trained one would.

    Random weights hardly ever write EOS. So the scores that the model has computed are altered: the
    first token says how many follow, drawn by the words that the model itself finds likeliest; each
    further token says one less, until EOS. So the same image and prompt give the same length in any
    batch, all work is done, and what is altered is one number of each row of scores.
    """

    def __init__(self, vlm: VisionLanguageModel, longest: int, eos_id: int) -> None:
        self._vlm, self._eos = vlm, eos_id
        rng = np.random.default_rng(7)
        most = WORDS + longest
        self._answers = answer_lengths(rng, 1009, longest)
        self._captions = caption_lengths(rng, 1009)
        self._last = torch.zeros(0, dtype=torch.long)
        self._limit = most

    @contextmanager
    def forced(self) -> Generator[None]:
        """Alter the scores while this is entered."""
        body, head = body_of(self._vlm.language_model), head_of(self._vlm.language_model)
        hooks = [
            body.register_forward_pre_hook(self._look, with_kwargs=True),
            head.register_forward_hook(self._alter),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _look(self, _: nn.Module, __: Any, given: dict[str, Any]) -> None:
        """Note the last id of each row; -1 is the separator."""
        if given.get("inputs_embeds") is None:
            self._last = given["input_ids"][:, -1]
            return
        marks = given["inputs_embeds"][:, -1, :MARKS].float() * 128
        powers = 128 ** torch.arange(MARKS, device=marks.device)
        self._last = torch.where(marks[:, 0] < 0, -1, (marks.round().long() * powers).sum(1))

    def _alter(self, _: nn.Module, __: Any, scores: Tensor) -> None:
        rows = scores.view(-1, scores.shape[-1])
        for row, last in zip(rows, self._last.tolist(), strict=True):
            if last == WORDS:
                following = self._eos
            elif last > WORDS:
                following = last - 1
            else:
                drawn = self._captions if last < 0 else self._answers
                left = drawn[_hash(row) % len(drawn)] - 1
                following = min(WORDS + int(left), self._limit)
            row[following] = 1e4


def _hash(scores: Tensor) -> int:
    parts = [int(part.argmax()) for part in scores.tensor_split(5)]
    return sum(place * factor for place, factor in zip(parts, (1, 31, 57, 101, 977), strict=True))


def build_plan(folder: Path, sizes: Sizes, seed: int = 0, device: str = "cpu") -> EvaluationPlan:
    """Return captions, questions and likelihoods about random images."""
    rng = np.random.default_rng(seed)
    tokenizer = train_tokenizer(TEXTS * 3, WORDS + sizes.longest + 50, folder / "lm")
    eos = tokenizer.token_to_id("<|endoftext|>")
    template = PromptTemplate(tokenizer, eos, "", "\n")
    count = sizes.captions
    patches = rng.standard_normal((count + 8, PATCHES, VISION)).astype(np.float16)
    table = write_images(folder / "features", patches)
    rows = table.rows_of([key_of(number) for number in range(count)])
    shown = Shown(table, rows, table.rows_of([key_of(count + n) for n in range(8)]), seed)
    captions = [Task("caption", int(row), [], _fixed(n)) for n, row in enumerate(rows)]
    asked = rng.integers(8, 25, sizes.questions)
    questions = [
        Task(
            "answer",
            int(rows[n % count]),
            rng.integers(2, WORDS, length).tolist(),
            _fixed(n % count) | {"question_id": n},
        )
        for n, length in enumerate(asked.tolist())
    ]
    write_table(folder / "objects.parquet", [], OBJECTS)
    objects = MarkedObjects(Files({"objects.parquet": str(folder / "objects.parquet")}), seed)
    some = max(2, round(SHARE * count))
    present = [PresenceQuestion(0, "cup", place < 3, ("random",)) for place in range(12)]
    part = preset("coco").evaluate.model_copy(
        update={
            "batch": sizes.batch,
            "max_new_tokens": sizes.longest,
            "likelihood_images": some,
        }
    )
    return EvaluationPlan(
        template=template,
        captions=captions,
        questions=questions,
        spoken="test",
        answers=[],
        examples={
            "caption": _texts(rng, caption_lengths(rng, count), count),
            "conversation": _conversations(rng, sizes, count),
        },
        objects=objects,
        presence=[(task, present) for task in captions[:some]],
        boxes=Boxes([], {}, {}, objects.names),
        shown=shown,
        evaluate=part,
        device=device,
    )


def _fixed(image: int) -> dict[str, Any]:
    return {
        "source": "",
        "split": "test",
        "image_id": image,
        "sha256": key_of(image),
        "question_id": None,
        "question": "",
        "images": 1,
        "references": ["Red."],
    }


def _texts(rng: np.random.Generator, lengths: Sequence[int], images: int) -> list[dict[str, Any]]:
    """Return captions as examples, shortest first."""
    return [
        _example(n, n % images, rng.integers(2, WORDS, length), np.ones(length, np.bool_))
        for n, length in enumerate(sorted(lengths))
    ]


def _conversations(rng: np.random.Generator, sizes: Sizes, images: int) -> list[dict[str, Any]]:
    """Return conversations of three turns as examples, shortest first."""
    made = []
    for number in range(sizes.questions):
        turns = answer_lengths(rng, 3, sizes.longest).tolist()
        judged = np.concatenate([np.repeat([False, True], [15, turn]) for turn in turns])
        ids = rng.integers(2, WORDS, len(judged))
        made.append(_example(number, number % images, ids, judged))
    return sorted(made, key=lambda row: len(row["input_ids"]))


def _example(number: int, image: int, ids: np.ndarray, judged: np.ndarray) -> dict[str, Any]:
    return {
        "example_id": number,
        "image_id": image,
        "sha256": key_of(image),
        "more_sha256": [],
        "split": "test",
        "input_ids": ids.tolist(),
        "supervised": judged.tolist(),
    }
