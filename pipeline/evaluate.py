"""Stage `evaluate`: free-running generations on test pictures, scored, under three conditions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from model.bundle import decoding_of
from model.generation import Generated, generate
from model.language import forbid_ids
from model.prompt import PromptTemplate
from model.vlm import VisionLanguageModel
from pipeline.assemble import load_pretrained
from pipeline.conditions import Shown
from pipeline.devices import pick_device
from pipeline.errors import PipelineError
from pipeline.likelihood import test_likelihood
from pipeline.pictures import open_patches
from pipeline.recipe_parts import EvaluatePart
from pipeline.schemas import CONDITIONS, METRICS, PREDICTIONS
from pipeline.scores import score_answer, summarize
from pipeline.stage import StageContext, Summary
from storage.tables import read_table, where, write_table

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One thing to generate on: a picture, a prompt, and what people wrote.

    Attributes:
        kind: `caption` or `answer`.
        row: Row of the picture's patch embeddings.
        prompt: Token ids after the picture.
        fixed: Columns of the prediction that are known beforehand.
    """

    kind: str
    row: int
    prompt: list[int]
    fixed: Row


def evaluate(context: StageContext, evaluate: EvaluatePart, seed: int) -> Summary:
    """Write `predictions`, `metrics` and `metrics.json`.

    Raises:
        PipelineError: There is no test picture with a caption.
    """
    device = pick_device(context.settings)
    patches = open_patches(context.inputs["features"])
    table = read_table(context.inputs["examples"].path("examples.parquet"))
    template = _template(context)
    captions = _caption_tasks(table, patches, evaluate)
    questions = _question_tasks(context, patches, template, evaluate)
    train = where(table, split="train")["sha256"].unique().to_pylist()
    rows = np.array([task.row for task in (*captions, *questions)], np.int64)
    shown = Shown(patches, rows, patches.rows_of(train), seed)
    predictions: list[Row] = []
    metrics: list[Row] = []
    plans = {"pretrain": captions, "finetune": [*captions, *questions]}
    total = sum(len(tasks) for tasks in plans.values()) * len(CONDITIONS)
    with context.report.track("answer test pictures", total) as tick:
        for stage, tasks in plans.items():
            vlm = _load(context, stage, template).to(device)
            for condition in CONDITIONS:
                made = []
                for row in _predict(vlm, template, tasks, shown, condition, evaluate, device):
                    made.append({"stage": stage, "split": "test", "condition": condition, **row})
                    tick()
                made.sort(key=lambda row: (row["kind"], row["image_id"], row["question_id"] or 0))
                likelihood = test_likelihood(vlm, table, shown, condition, stage, evaluate, device)
                metrics += summarize(made, likelihood, evaluate.resamples, seed)
                predictions += made
    for number, row in enumerate(predictions):
        row["prediction_id"] = number
    write_table(context.out / "predictions.parquet", predictions, PREDICTIONS)
    write_table(context.out / "metrics.parquet", metrics, METRICS)
    (context.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return _headline(metrics, len(predictions))


def _template(context: StageContext) -> PromptTemplate:
    stored = json.loads(context.inputs["examples"].path("template.json").read_text())
    return PromptTemplate.load(context.inputs["backbones"].directory("lm"), **stored)


def _load(context: StageContext, stage: str, template: PromptTemplate) -> VisionLanguageModel:
    source = context.inputs["backbones" if stage == "pretrain" else "finetune"]
    vlm = load_pretrained(source.directory("lm"), context.inputs[stage])
    forbid_ids(vlm.language_model, template.tokenizer.get_vocab_size())
    return vlm


def _caption_tasks(table: Any, patches: Any, evaluate: EvaluatePart) -> list[Task]:
    test = where(table, split="test", kind="caption")
    by_image: dict[tuple[int, str], list[str]] = {}
    for row in test.select(["image_id", "sha256", "text"]).to_pylist():
        by_image.setdefault((row["image_id"], row["sha256"]), []).append(row["text"])
    chosen = sorted(by_image)[: evaluate.images]
    if not chosen:
        raise PipelineError(
            "no test picture has a usable caption",
            "raise images.test_limit, or look at the drops",
        )
    rows = patches.rows_of([sha256 for _, sha256 in chosen])
    return [
        Task(
            "caption",
            int(row),
            [],
            {"image_id": key[0], "question_id": None, "question": "", "references": by_image[key]},
        )
        for key, row in zip(chosen, rows, strict=True)
    ]


def _question_tasks(
    context: StageContext, patches: Any, template: PromptTemplate, evaluate: EvaluatePart
) -> list[Task]:
    table = read_table(context.inputs["examples"].path("questions.parquet"))
    test = where(table, split="test").slice(0, evaluate.questions).to_pylist()
    rows = patches.rows_of([row["sha256"] for row in test])
    return [
        Task(
            "answer",
            int(at),
            template.question(row["question"]),
            {
                "image_id": row["image_id"],
                "question_id": row["question_id"],
                "question": row["question"],
                "references": [row["answer"]],
            },
        )
        for row, at in zip(test, rows, strict=True)
    ]


def _predict(
    vlm: VisionLanguageModel,
    template: PromptTemplate,
    tasks: list[Task],
    shown: Shown,
    condition: str,
    evaluate: EvaluatePart,
    device: str,
) -> Iterator[Row]:
    ordered = sorted(tasks, key=lambda task: len(task.prompt))
    for start in range(0, len(ordered), evaluate.batch):
        batch = ordered[start : start + evaluate.batch]
        with torch.inference_mode():
            texts = generate(
                vlm,
                shown.show([task.row for task in batch], condition).to(device),
                [task.prompt for task in batch],
                eos_id=template.eos_id,
                max_new_tokens=evaluate.max_new_tokens,
                decoding=decoding_of(evaluate.beams),
            )
        for task, text in zip(batch, texts, strict=True):
            yield _row(task, text, template)


def _row(task: Task, text: Generated, template: PromptTemplate) -> Row:
    prediction = template.decode(text.ids)
    score = score_answer(prediction, task.fixed["references"][0]) if task.kind == "answer" else None
    return {
        **task.fixed,
        "kind": task.kind,
        "prediction": prediction,
        "ended": text.ended,
        "tokens": len(text.ids),
        "score": score,
    }


def _headline(metrics: list[Row], predictions: int) -> Summary:
    shown = {
        f"{row['metric']}_{row['condition']}": round(row["value"], 4)
        for row in metrics
        if row["stage"] == "finetune"
        and row["metric"] in ("cider_d", "answer_accuracy", "eos_rate")
    }
    return {"predictions": predictions, **shown}
