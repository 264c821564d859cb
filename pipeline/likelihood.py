"""How likely the model finds what people wrote about test pictures, in nats per token."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.vlm import VisionLanguageModel
from pipeline.conditions import Shown
from pipeline.feed import collate
from pipeline.recipe_parts import EvaluatePart
from storage.tables import where


def test_likelihood(
    vlm: VisionLanguageModel,
    table: pa.Table,
    shown: Shown,
    condition: str,
    stage: str,
    evaluate: EvaluatePart,
    device: str,
) -> dict[str, tuple[float, int]]:
    """Return mean negative log-likelihood and token count of test examples, by metric name.

    `nll` is over what the stage was trained on: captions after pretraining, answers after
    finetuning; `caption_nll` is over captions for both.

    Args:
        vlm: The model.
        table: The `examples` table.
        shown: Patch embeddings by condition.
        condition: `real`, `shuffled` or `blind`.
        stage: `pretrain` or `finetune`.
        evaluate: Limits and batch size.
        device: Where to compute.
    """
    found = {"caption_nll": _mean_nll(vlm, table, "caption", shown, condition, evaluate, device)}
    if stage == "finetune":
        found["nll"] = _mean_nll(vlm, table, "conversation", shown, condition, evaluate, device)
    else:
        found["nll"] = found["caption_nll"]
    return {name: pair for name, pair in found.items() if pair[1]}


def _mean_nll(
    vlm: VisionLanguageModel,
    table: pa.Table,
    kind: str,
    shown: Shown,
    condition: str,
    evaluate: EvaluatePart,
    device: str,
) -> tuple[float, int]:
    limit = evaluate.images if kind == "caption" else evaluate.questions
    rows: list[dict[str, Any]] = where(table, split="test", kind=kind).to_pylist()
    rows = [row for row in rows if shown.knows(row["sha256"])][:limit]
    rows.sort(key=lambda row: (len(row["input_ids"]), row["example_id"]))
    total, tokens = 0.0, 0
    for start in range(0, len(rows), evaluate.batch):
        part = rows[start : start + evaluate.batch]
        at = shown.patches.rows_of([row["sha256"] for row in part])
        ids = [np.array(row["input_ids"], np.int64) for row in part]
        masks = [np.array(row["supervised"], np.bool_) for row in part]
        with torch.inference_mode():
            nll = vlm(collate(shown.show(at, condition), ids, masks).to(device))
        total += float(nll.double().sum())
        tokens += len(nll)
    return total / max(1, tokens), tokens
