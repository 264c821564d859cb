"""Stage `evaluate`: what models do on test images, under three conditions, against two floors."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from model.bundle import decoding_of
from model.generation import Generated, generate
from model.language import forbid_ids, saved_dtype
from model.prompt import PromptTemplate
from model.vlm import VisionLanguageModel
from pipeline.data.schemas import METRICS, PREDICTIONS, TEXT_ONLY
from pipeline.engine.stage import StageContext, Summary
from pipeline.evaluation import metrics as measures
from pipeline.evaluation.baselines import floor_captions
from pipeline.evaluation.evaluation_plan import TRAINED, Exam, prepare_exam
from pipeline.evaluation.likelihood import model_likelihood, text_likelihood
from pipeline.evaluation.likelihood_tasks import choice_scores, presence_answers
from pipeline.evaluation.metrics import Measure
from pipeline.evaluation.pointing import IMPORTANCE, look, pointing_measures, table_rows
from pipeline.evaluation.scorers.vqa import answer_accuracy
from pipeline.evaluation.scores import change, summarize
from pipeline.evaluation.tasks import Task
from pipeline.progress import Ticker
from pipeline.recipe.parts import EvaluatePart
from pipeline.training.assemble import load_pretrained
from storage.tables import write_table

Row = dict[str, Any]
HEADLINE = ("cider_d", "answer_accuracy", "eos_rate")


def evaluate(context: StageContext, evaluate: EvaluatePart, seed: int) -> Summary:
    """Write `predictions`, `importance`, `metrics` and `metrics.json`.

    Raises:
        PipelineError: There is no test image with a caption.
    """
    exam = prepare_exam(context, evaluate, seed)
    floors = _floor_rows(context, exam)
    predictions: list[Row] = []
    looked: list[Row] = []
    metrics: list[Row] = []
    plain: list[Measure] = []
    with context.report.track("evaluate test images", exam.work) as tick:
        for stage in TRAINED:
            # One call for each, so that the first model is gone before the second is there.
            rows, found, words = _conditions(context, exam, stage, tick)
            predictions += rows
            looked += words
            for name, rows in floors.items():
                found[name] = measures.caption_measures(rows)
                if stage == "finetune":
                    predictions += [{"stage": stage, "condition": name, **row} for row in rows]
            plain += found[TEXT_ONLY]
            tick(0, "draw images for the intervals")
            metrics += summarize(stage, found, evaluate.resamples, seed)
    metrics += change("text_nll_rise", "finetune", *plain, evaluate.resamples, seed)
    for number, row in enumerate(predictions):
        row["prediction_id"] = number
        for name in ("sha256", "mentions"):
            row.pop(name, None)
    write_table(context.out / "predictions.parquet", predictions, PREDICTIONS)
    write_table(context.out / "importance.parquet", table_rows(looked), IMPORTANCE)
    write_table(context.out / "metrics.parquet", metrics, METRICS)
    (context.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return _headline(metrics, len(predictions))


def _load(context: StageContext, exam: Exam, stage: str) -> VisionLanguageModel:
    """Return the model of a stage, in the type that finetuning left its own in.

    Both are compared with each other, so both compute in the same type.
    """
    finetuned = context.inputs["finetune"].directory("lm")
    dtype = saved_dtype(finetuned)
    lm = context.inputs["backbones"].directory("lm") if stage == "pretrain" else finetuned
    vlm = load_pretrained(lm, context.inputs[stage], dtype, device=exam.device)
    forbid_ids(vlm.language_model, exam.template.tokenizer.get_vocab_size())
    return vlm


def _floor_rows(context: StageContext, exam: Exam) -> dict[str, list[Row]]:
    """Return captions that no language model wrote, as rows of predictions, by floor."""
    inputs = context.inputs
    texts = floor_captions(inputs["examples"], inputs["features"], context.settings.threads)
    found: dict[str, list[Row]] = {}
    for name, by_hash in texts.items():
        found[name] = [
            {**task.fixed, "kind": "caption", "prediction": by_hash[task.fixed["sha256"]]}
            for task in exam.captions
        ]
        for row in found[name]:
            exam.objects.judge(row)
    return found


def _conditions(
    context: StageContext, exam: Exam, stage: str, tick: Ticker
) -> tuple[list[Row], dict[str, list[Measure]], list[Row]]:
    """Return what a stage's model says under every condition, all measures, where it looked."""
    tick(0, f"load the model of {stage}")
    vlm = _load(context, exam, stage)
    said: list[Row] = []
    found: dict[str, list[Measure]] = {}
    for condition in exam.shown.conditions:
        tick(0, f"{stage}, {condition}")
        rows, found[condition] = _examine(exam, vlm, stage, condition, tick)
        said += [{"stage": stage, "condition": condition, **row} for row in rows]
    nats = text_likelihood(vlm, exam.texts, exam.evaluate.batch, exam.device, tick)
    found[TEXT_ONLY] = measures.likelihood_measures({"text_nll": nats})
    looked: list[Row] = []
    if stage == "finetune":
        tick(0, "hide one patch after the other")
        batch = exam.evaluate.batch
        looked = look(vlm, exam.template, said, exam.boxes, exam.shown, batch, tick)
        for condition, pointing in pointing_measures(looked).items():
            found[condition] += pointing
    return said, found, looked


def _examine(
    exam: Exam, vlm: VisionLanguageModel, stage: str, condition: str, tick: Ticker
) -> tuple[list[Row], list[Measure]]:
    """Return what a model says under a condition, and all measures of it."""
    tasks = exam.captions if stage == "pretrain" else [*exam.captions, *exam.questions]
    rows = []
    for row in _predict(exam, vlm, tasks, condition):
        rows.append(row)
        tick()
    rows.sort(key=lambda row: (row["kind"], row["image_id"], row["question_id"] or 0))
    captions = [row for row in rows if row["kind"] == "caption"]
    for row in captions:
        exam.objects.judge(row)
    found = measures.caption_measures(captions)
    found.append(measures.ending_measure([row for row in rows if row["split"] == "test"]))
    evaluate, shown = exam.evaluate, exam.shown
    nats = model_likelihood(
        vlm, exam.examples, exam.answers, shown, condition, stage, evaluate, exam.device, tick
    )
    captioned = {"caption_nll"} if stage == "finetune" else {"caption_nll", "nll"}
    found += measures.likelihood_measures({name: nats[name] for name in sorted(captioned)})
    found += _choice(exam, vlm, condition, tick)
    if stage == "finetune":
        answers = [row for row in rows if row["kind"] == "answer"]
        about = measures.answer_measures(answers) if answers else []
        spoken = {name: each for name, each in nats.items() if name not in captioned}
        about += measures.likelihood_measures(spoken)
        found += [replace(each, split=exam.spoken) for each in about]
        presence = _presence(exam, vlm, condition, tick)
        found += measures.presence_measures(presence) if presence else []
        rows += presence
    return rows, found


def _predict(
    exam: Exam, vlm: VisionLanguageModel, tasks: Sequence[Task], condition: str
) -> Iterator[Row]:
    ordered = sorted(tasks, key=lambda task: len(task.prompt))
    for start in range(0, len(ordered), exam.evaluate.batch):
        batch = ordered[start : start + exam.evaluate.batch]
        with torch.inference_mode():
            texts = generate(
                vlm,
                exam.shown.show([task.row for task in batch], condition).to(exam.device),
                [task.prompt for task in batch],
                eos_id=exam.template.eos_id,
                max_new_tokens=exam.evaluate.max_new_tokens,
                decoding=decoding_of(exam.evaluate.beams),
            )
        for task, text in zip(batch, texts, strict=True):
            yield _row(task, text, exam.template)


def _row(task: Task, text: Generated, template: PromptTemplate) -> Row:
    prediction = template.decode(text.ids)
    row = {**task.fixed, "kind": task.kind, "prediction": prediction}
    row |= {"ended": text.ended, "tokens": len(text.ids)}
    if task.kind == "answer":
        row["score"] = answer_accuracy(prediction, task.fixed["references"])
    return row


def _choice(exam: Exam, vlm: VisionLanguageModel, condition: str, tick: Ticker) -> list[Measure]:
    tasks = exam.captions[: exam.evaluate.probes]
    if len(tasks) < 2:
        return []
    scores = choice_scores(
        vlm,
        np.array([task.row for task in tasks], np.int64),
        [exam.template.caption(task.fixed["references"][0]) for task in tasks],
        exam.evaluate.choices,
        exam.shown,
        condition,
        exam.evaluate.batch,
        exam.device,
        tick,
    )
    images = [task.fixed["image_id"] for task in tasks]
    return [measures.mean("image_choice", images, scores)]


def _presence(exam: Exam, vlm: VisionLanguageModel, condition: str, tick: Ticker) -> list[Row]:
    asked = exam.presence
    texts = [
        [each.text(exam.evaluate.presence_question) for each in questions] for _, questions in asked
    ]
    answers = presence_answers(
        vlm,
        exam.template,
        np.array([task.row for task, _ in asked], np.int64),
        texts,
        exam.evaluate.presence_answers,
        exam.shown,
        condition,
        exam.evaluate.batch,
        exam.device,
        tick,
    )
    words = {True: "yes", False: "no"}
    return [
        {
            **task.fixed,
            "kind": "presence",
            "question": text,
            "references": [words[question.present]],
            "prediction": words[said],
            "score": float(said == question.present),
            "sets": list(question.sets),
        }
        for (task, questions), said_all, all_texts in zip(asked, answers, texts, strict=True)
        for question, said, text in zip(questions, said_all, all_texts, strict=True)
    ]


def _headline(metrics: list[Row], predictions: int) -> Summary:
    shown = {
        f"{row['metric']}_{row['condition']}": round(row["value"], 4)
        for row in metrics
        if row["stage"] == "finetune" and row["metric"] in HEADLINE
    }
    return {"predictions": predictions, **shown}
