"""Tasks answered by likelihood alone: is an object there, which image fits a caption.

Texts about one image share its prefix in one row, so an image is processed once for all of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model.prompt import PromptTemplate, Tokens
from model.vlm import VisionLanguageModel
from pipeline.evaluation.conditions import Shown
from pipeline.progress import Ticker, silent
from pipeline.training.collate import collate

TIE = 1e-4  # nats within which two images are equally likely


def presence_answers(
    vlm: VisionLanguageModel,
    template: PromptTemplate,
    images: NDArray[np.int64],
    questions: Sequence[Sequence[str]],
    answers: tuple[str, str],
    shown: Shown,
    condition: str,
    batch: int,
    device: str,
    tick: Ticker = silent,
) -> list[list[bool]]:
    """Return whether the model finds yes likelier than no, for every question.

    Tokens that both words begin with belong to the prompt; the first token in which they differ
    decides.

    Args:
        vlm: The model.
        template: The prompt template.
        images: Row of patch embeddings of each image, int64 [image].
        questions: The questions about each image.
        answers: How the conversations spell yes and no.
        shown: Patch embeddings by condition.
        condition: `real`, `shuffled` or `blind`.
        batch: Images per forward pass.
        device: Where to compute.
        tick: Called after every finished image.
    """
    lead, yes, no = _fork(*(template.answer(answer) for answer in answers))
    answered: list[list[bool]] = []
    for start in range(0, len(images), batch):
        asked = questions[start : start + batch]
        texts = [[*template.question(text), *lead, yes] for texts in asked for text in texts]
        logits = _last_logits(
            vlm,
            shown.show(images[start : start + batch], condition),
            texts,
            [len(each) for each in asked],
            device,
        )
        said = iter((logits[:, yes] > logits[:, no]).tolist())
        answered += [[next(said) for _ in each] for each in asked]
        tick(len(asked))
    return answered


def choice_scores(
    vlm: VisionLanguageModel,
    images: NDArray[np.int64],
    captions: Sequence[Tokens],
    choices: int,
    shown: Shown,
    condition: str,
    batch: int,
    device: str,
    tick: Ticker = silent,
) -> NDArray[np.float64]:
    """Return for every caption whether its own image makes it likeliest, float64 [image].

    Caption i is offered image i and the `choices` - 1 images after it, as on a ring. Of n
    equally likely images each gets 1 / n. Under `blind` all images are the same one, so that each
    caption gets 1 / `choices` and nothing is computed.

    Args:
        vlm: The model.
        images: Row of patch embeddings of each image, int64 [image].
        captions: One caption of each image as a training example, EOS included.
        choices: Images a caption is offered, its own among them.
        shown: Patch embeddings by condition.
        condition: `real`, `shuffled` or `blind`.
        batch: Images per forward pass.
        device: Where to compute.
        tick: Called after every finished image.
    """
    count = len(images)
    choices = min(choices, count)
    if condition == "blind":
        tick(count)
        return np.full(count, 1 / choices)
    nats = np.empty((count, choices))  # of caption i with image i + step
    for start in range(0, count, batch):
        here = np.arange(start, min(start + batch, count))
        offered = (here[:, None] - np.arange(choices)) % count  # captions scored with this image
        texts = [[captions[at] for at in row] for row in offered.tolist()]
        seen = shown.show(images[here], condition)
        nats[offered, np.arange(choices)] = _caption_nats(vlm, seen, texts, device)
        tick(len(here))
    best = nats <= nats.min(axis=1, keepdims=True) + TIE
    return best[:, 0] / best.sum(axis=1)


def _caption_nats(
    vlm: VisionLanguageModel,
    patches: torch.Tensor,
    captions: Sequence[Sequence[Tokens]],
    device: str,
) -> NDArray[np.float64]:
    """Return the nats of equally many captions about each image, float64 [image, caption]."""
    each = [caption for some in captions for caption in some]
    ids = [np.array(caption.input_ids, np.int64) for caption in each]
    judged = [np.array(caption.supervised, np.bool_) for caption in each]
    with torch.inference_mode():
        texts = collate(patches, ids, judged, [len(some) for some in captions]).to(device)
        token_nats = vlm(texts).double().cpu().numpy()
    ends = np.cumsum([targets.sum() for targets in judged])[:-1]
    sums = [nats.sum() for nats in np.split(token_nats, ends)]
    return np.array(sums).reshape(len(captions), -1)


def _fork(first: Sequence[int], second: Sequence[int]) -> tuple[list[int], int, int]:
    """Return the ids that two words share at their start, and the next id of each."""
    shared = 0
    while first[shared] == second[shared]:
        shared += 1
    return list(first[:shared]), first[shared], second[shared]


def _last_logits(
    vlm: VisionLanguageModel,
    patches: torch.Tensor,
    texts: Sequence[Sequence[int]],
    counts: Sequence[int],
    device: str,
) -> torch.Tensor:
    """Return the logits that predict the last token of each text [text, word]."""
    ids = [np.array(text, np.int64) for text in texts]
    last = [np.arange(len(each)) == len(each) - 1 for each in ids]
    with torch.inference_mode():
        states = vlm.supervised_states(collate(patches, ids, last, counts).to(device)).states
        return vlm.logits(states).cpu()
