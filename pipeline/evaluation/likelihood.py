"""The likelihood that a model gives to what people wrote about test images, in nats.

Every result is a list of rows (image, nats, tokens), so that a mean over tokens can have an
interval over images.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from model.vlm import VisionLanguageModel
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.scorers.vqa import answer_type
from pipeline.evaluation.tasks import spread
from pipeline.progress import Ticker, silent
from pipeline.recipe.parts import EvaluatePart
from pipeline.training.collate import collate, widened
from storage.tables import where

Row = dict[str, Any]


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


def likelihood(
    vlm: VisionLanguageModel,
    rows: Sequence[Row],
    shown: Shown,
    condition: str,
    batch: int,
    device: str,
    tick: Ticker = silent,
) -> list[NDArray[np.float64]]:
    """Return the nats of every supervised token of each example, under a condition.

    Args:
        vlm: The model.
        rows: Rows of the `examples` table.
        shown: Patch embeddings by condition.
        condition: `real`, `shuffled` or `blind`.
        batch: Examples per forward pass.
        device: Where to compute.
        tick: Called after every finished example.
    """
    per_example: list[NDArray[np.float64]] = []
    for part in _parts(rows, batch):
        hashes = [row["sha256"] for row in part]
        hashes += [sha256 for row in part for sha256 in row["more_sha256"]]
        patches = shown.show(shown.patches.rows_of(hashes), condition).to(device)
        ids = [np.array(row["input_ids"], np.int64) for row in part]
        masks = [np.array(row["supervised"], np.bool_) for row in part]
        with torch.inference_mode():
            if len(patches) > len(part):
                prefix = vlm.embed_images(patches[:1]).tokens.shape[1]
                texts = zip(ids, masks, strict=True)
                ids, masks = zip(*(widened(*text, prefix) for text in texts), strict=True)
            nats = vlm(collate(patches, ids, masks).to(device))
        ends = np.cumsum([mask.sum() for mask in masks])[:-1]
        per_example += np.split(nats.double().cpu().numpy(), ends)
        tick(len(part))
    return per_example


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
    condition: str,
    evaluate: EvaluatePart,
    device: str,
    tick: Ticker = silent,
    *,
    spoke: bool,
) -> dict[str, list[Nats]]:
    """Return the nats of held-out text under a condition, by metric name.

    `nll` is over what the stage was trained on: answers where it has learned from conversations
    (`spoke`), and then there are also `nll_yes_no`, `nll_number` and `nll_other`; else captions.
    `caption_nll` is over captions for both.
    """
    captions = examples["caption"]
    nats = likelihood(vlm, captions, shown, condition, evaluate.batch, device, tick)
    by_metric = {"caption_nll": whole(captions, nats)}
    spoken = examples["conversation"]
    if not spoke or not spoken:
        return {**by_metric, "nll": by_metric["caption_nll"]}
    nats = likelihood(vlm, spoken, shown, condition, evaluate.batch, device, tick)
    by_metric["nll"] = whole(spoken, nats)
    for name, rows in sorted(by_answer_type(spoken, nats, questions).items()):
        by_metric[f"nll_{name}"] = rows
    return by_metric


def _parts(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
