"""The likelihood that a model gives to what people wrote about test images, in nats.

Every result is a list of rows (image, nats, tokens), so that a mean over tokens can have an
interval over images.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from model.batch import Batch
from model.prefixes import nll_behind, read_images
from model.vlm import VisionLanguageModel
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.image_groups import by_images
from pipeline.evaluation.scorers.vqa import answer_type
from pipeline.evaluation.tasks import spread
from pipeline.progress import Ticker, silent
from pipeline.recipe.parts import EvaluatePart
from pipeline.training.collate import collate, widened
from storage.tables import where

Row = dict[str, Any]
T = TypeVar("T")
PADDING = 0.1  # of the positions of texts that are read together, at most


class Nats(NamedTuple):
    """Negative log-likelihood of some text about one image: its sum and its tokens."""

    image_id: int
    nats: float
    tokens: int


def held_out_rows(
    table: pa.Table, shown: Shown, kind: str, split: str, limit: int, seed: int
) -> list[Row]:
    """Return examples of a kind about images that are shown, shortest first.

    Args:
        table: The `examples` table.
        shown: The images.
        kind: `caption` or `conversation`.
        split: `test` or `validation`.
        limit: Examples, at most.
        seed: Seed of the choice where there are more, see `spread`.
    """
    rows: list[Row] = where(table, split=split, kind=kind).to_pylist()
    known = [row for row in rows if all(map(shown.knows, (row["sha256"], *row["more_sha256"])))]
    rows = spread(known, limit, seed)
    return sorted(rows, key=lambda row: (len(row["input_ids"]), row["example_id"]))


class _Scored(NamedTuple):
    """An example under a condition.

    Attributes:
        place: Where its nats belong among those of all.
        images: What `Shown.image` returned for its images, the first one first.
        ids: Token ids [text].
        supervised: Which of them are targets.
    """

    place: tuple[str, int]
    images: list[int]
    ids: NDArray[np.int64]
    supervised: NDArray[np.bool_]


def likelihood(
    vlm: VisionLanguageModel,
    rows: Sequence[Row],
    shown: Shown,
    conditions: Sequence[str],
    batch: int,
    device: str,
    tick: Ticker = silent,
) -> dict[str, list[NDArray[np.float64]]]:
    """Return by condition the nats of every supervised token of each example.

    Each image is read once for all examples and conditions.

    Args:
        vlm: The model.
        rows: Rows of the `examples` table.
        shown: Patch embeddings by condition.
        conditions: Some of `real`, `shuffled` and `blind`.
        batch: Images and examples per forward pass.
        device: Where to compute.
        tick: Called after every finished example, once for each condition.
    """
    scored = [
        _scored((condition, number), row, shown)
        for condition in conditions
        for number, row in enumerate(rows)
    ]
    found: dict[tuple[str, int], NDArray[np.float64]] = {}
    for images, group in by_images(scored, lambda each: each.images[0], batch):
        read = read_images(vlm, shown.patches_of(images).to(device))
        group.sort(key=lambda each: (len(each.ids), each.place))
        for part in _similar(group, batch):
            texts = _texts(part, shown, read.tokens.shape[1]).to(device)
            of = torch.tensor([images.index(each.images[0]) for each in part], device=device)
            nats = nll_behind(vlm, read, of, texts).double().cpu().numpy()
            ends = np.cumsum([each.supervised.sum() for each in part])[:-1]
            found |= zip((each.place for each in part), np.split(nats, ends), strict=True)
            tick(len(part))
    return {
        condition: [found[condition, number] for number in range(len(rows))]
        for condition in conditions
    }


def _similar(group: Sequence[_Scored], most: int) -> Iterator[list[_Scored]]:
    """Yield texts that are given shortest first, so many together that little is padding."""
    part: list[_Scored] = []
    tokens = 0
    for each in group:
        length = len(each.ids)
        padded = length * (len(part) + 1)
        if part and (len(part) == most or padded - tokens - length > PADDING * padded):
            yield part
            part, tokens = [], 0
        part.append(each)
        tokens += length
    if part:
        yield part


def _scored(place: tuple[str, int], row: Row, shown: Shown) -> _Scored:
    own = shown.patches.rows_of([row["sha256"], *row["more_sha256"]]).tolist()
    return _Scored(
        place,
        [shown.image(image, place[0]) for image in own],
        np.array(row["input_ids"], np.int64),
        np.array(row["supervised"], np.bool_),
    )


def _texts(part: Sequence[_Scored], shown: Shown, prefix: int) -> Batch:
    """Return texts as a batch, with the patches of their further images only."""
    texts = (widened(each.ids, each.supervised, prefix) for each in part)
    ids, supervised = zip(*texts, strict=True)
    further = [image for each in part for image in each.images[1:]]
    patches = shown.patches_of(further or part[0].images[:1])[: len(further)]
    return collate(patches, ids, supervised)


def text_likelihood(
    vlm: VisionLanguageModel, rows: Sequence[Row], batch: int, device: str, tick: Ticker = silent
) -> list[Nats]:
    """Return the nats of each example as plain text: no image, no prefix, every token but one.

    It shows what finetuning did to the language itself. The first token has no context and is not
    counted.
    """
    per_text: list[Nats] = []
    for part in _parts([row for row in rows if len(row["input_ids"]) > 1], batch):
        lengths = torch.tensor([len(row["input_ids"]) for row in part])
        ids = torch.zeros(len(part), int(lengths.max()), dtype=torch.long)
        for number, row in enumerate(part):
            ids[number, : lengths[number]] = torch.tensor(row["input_ids"])
        counted = torch.arange(1, ids.shape[1]) < lengths[:, None]
        with torch.inference_mode():
            states = vlm.hidden(vlm.embed_text(ids[:, :-1].to(device)))
            nats = vlm.nll(states[counted.to(device)], ids[:, 1:][counted].to(device))
        ends = counted.sum(dim=1).cumsum(0)[:-1].tolist()
        pieces = np.split(nats.double().cpu().numpy(), ends)
        per_text += [
            Nats(row["image_id"], float(piece.sum()), len(piece))
            for row, piece in zip(part, pieces, strict=True)
        ]
        tick(len(part))
    return per_text


def whole(rows: Sequence[Row], nats: Sequence[NDArray[np.float64]]) -> list[Nats]:
    """Return one sum per example."""
    return [
        Nats(row["image_id"], float(values.sum()), len(values))
        for row, values in zip(rows, nats, strict=True)
    ]


def by_answer_type(
    rows: Sequence[Row], nats: Sequence[NDArray[np.float64]], questions: Sequence[Row]
) -> dict[str, list[Nats]]:
    """Return the sums of the answers of conversations, grouped by the type of the answer.

    Args:
        rows: Conversations.
        nats: Their nats, one per supervised token.
        questions: Rows of the `questions` table; a conversation's turns are its supervised runs.
    """
    answers = {(row["example_id"], row["turn"]): row["answer"] for row in questions}
    by_type: dict[str, list[Nats]] = {}
    for row, values in zip(rows, nats, strict=True):
        runs = [len(list(run)) for target, run in groupby(row["supervised"]) if target]
        for turn, piece in enumerate(np.split(values, np.cumsum(runs)[:-1])):
            answer = answers.get((row["example_id"], turn))
            if answer is not None:
                nat = Nats(row["image_id"], float(piece.sum()), len(piece))
                by_type.setdefault(answer_type(answer), []).append(nat)
    return by_type


def model_likelihood(
    vlm: VisionLanguageModel,
    examples: dict[str, list[Row]],
    questions: Sequence[Row],
    shown: Shown,
    conditions: Sequence[str],
    evaluate: EvaluatePart,
    device: str,
    tick: Ticker = silent,
    *,
    spoke: bool,
) -> dict[str, dict[str, list[Nats]]]:
    """Return the nats of held-out text by condition and metric name.

    `nll` is over what the stage was trained on: answers where it has learned from conversations
    (`spoke`), and then there are also `nll_yes_no`, `nll_number` and `nll_other`; else captions.
    `caption_nll` is over captions for both.
    """
    captions, spoken = examples["caption"], examples["conversation"]
    of_captions = likelihood(vlm, captions, shown, conditions, evaluate.batch, device, tick)
    by_condition: dict[str, dict[str, list[Nats]]] = {}
    for condition, nats in of_captions.items():
        summed = whole(captions, nats)
        by_condition[condition] = {"caption_nll": summed, "nll": summed}
    if spoke and spoken:
        answers = likelihood(vlm, spoken, shown, conditions, evaluate.batch, device, tick)
        for condition, nats in answers.items():
            by_condition[condition]["nll"] = whole(spoken, nats)
            by_type = by_answer_type(spoken, nats, questions)
            by_condition[condition] |= {f"nll_{name}": by_type[name] for name in sorted(by_type)}
    return by_condition


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
