"""How the next token is chosen from the scores of all words: the likeliest, or drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import (
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from model.generation_configs import GenerationConfig, TopPConfig
from model.vlm import VisionLanguageModel

_ROWS = 16  # drawn together: their sums of 49,152 words in 64 bits take 6 MB


@dataclass(frozen=True)
class Chooser:
    """Chooses the tokens of one text.

    Attributes:
        kind: Greedy, or nucleus sampling with any seed.
        steps: What is done to the scores before.
        generator: Makes the draws, None for the likeliest token.
    """

    kind: GenerationConfig
    steps: LogitsProcessorList
    generator: torch.Generator | None

    def __call__(self, logits: Float[Tensor, "1 word"]) -> Int[Tensor, "1 1"]:
        """Return the next token."""
        return choose([self], logits)


def chooser(vlm: VisionLanguageModel, decoding: GenerationConfig, device: torch.device) -> Chooser:
    """Return what chooses the tokens of a text; without beams."""
    settings = vlm.language_model.generation_config
    suppressed = settings.suppress_tokens if settings is not None else None
    # The classes and the order of transformers' own generation.
    steps = LogitsProcessorList()
    if suppressed:
        steps.append(SuppressTokensLogitsProcessor(suppressed, str(device)))
    if not isinstance(decoding, TopPConfig):
        return Chooser(decoding, steps, None)
    steps.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_p < 1:  # all words: nothing to sort
        steps.append(TopPLogitsWarper(decoding.top_p))
    generator = torch.Generator(device).manual_seed(decoding.seed)
    return Chooser(decoding.model_copy(update={"seed": 0}), steps, generator)


def choose(choosers: Sequence[Chooser], logits: Float[Tensor, "row word"]) -> Int[Tensor, "row 1"]:
    """Return the next token of each row; rows of one kind are chosen together."""
    kinds: dict[GenerationConfig, list[int]] = {}
    for row, each in enumerate(choosers):
        kinds.setdefault(each.kind, []).append(row)
    chosen = torch.empty(len(choosers), 1, dtype=torch.long, device=logits.device)
    for alike in kinds.values():
        # Only draws need more memory than the scores take.
        size = _ROWS if choosers[alike[0]].generator else len(alike)
        for start in range(0, len(alike), size):
            rows = alike[start : start + size]
            first, end = rows[0], rows[-1] + 1
            # Without a copy where they are neighbours.
            some = logits[first:end] if end - first == len(rows) else logits[rows]
            chosen[rows] = _choose_alike([choosers[row] for row in rows], some)
    return chosen


def _choose_alike(
    choosers: Sequence[Chooser], logits: Float[Tensor, "row word"]
) -> Int[Tensor, "row 1"]:
    # These processors look at the scores only.
    scores = choosers[0].steps(torch.LongTensor(len(choosers), 0), logits)
    generators = [each.generator for each in choosers if each.generator is not None]
    return _drawn(scores, generators) if generators else scores.argmax(dim=-1, keepdim=True)


def _drawn(
    scores: Float[Tensor, "row word"], generators: Sequence[torch.Generator]
) -> Int[Tensor, "row 1"]:
    """Draw a word for each row with the probability that its score gives it.

    `torch.multinomial` makes a random number for each word of the vocabulary, which takes longer
    than a small language model; this makes one.
    """
    sums = scores.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    points = [torch.rand(1, 1, generator=each, device=scores.device) for each in generators]
    # float32 is below 1 by so much that its product is below the last sum.
    return torch.searchsorted(sums, torch.cat(points) * sums[:, -1:], right=True)
