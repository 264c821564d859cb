"""Stage `evaluate`: models on test images, under three conditions, against baselines."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from model.generation import Generated
from model.language import forbid_ids, saved_dtype
from model.prompt import PromptTemplate
from model.vlm import VisionLanguageModel
from pipeline.data.schemas import METRICS, METRICS_BY_SOURCE, PREDICTIONS, TEXT_ONLY
from pipeline.engine.stage import StageContext, Summary
from pipeline.evaluation.baselines import baseline_captions
from pipeline.evaluation.by_source import by_source
from pipeline.evaluation.evaluation_plan import TRAINED, EvaluationPlan, plan_evaluation
from pipeline.evaluation.likelihood import Nats, model_likelihood, text_likelihood
from pipeline.evaluation.likelihood_tasks import choice_scores, presence_answers
from pipeline.evaluation.metrics import (
    Metric,
    answer_metrics,
    caption_metrics,
    ending_metric,
    greedy_metric,
    likelihood_metrics,
    mean,
    presence_metrics,
)
from pipeline.evaluation.pointing import IMPORTANCE, look, pointing_metrics, table_rows
from pipeline.evaluation.scorers.vqa import answer_accuracy
from pipeline.evaluation.scores import change, summarize
from pipeline.evaluation.tasks import Task
from pipeline.evaluation.writing import write_texts
from pipeline.progress import Ticker, silent
from pipeline.recipe.parts import EvaluatePart
from pipeline.training.assemble import load_pretrained
from storage.tables import write_table

Row = dict[str, Any]
HEADLINE = ("cider_d", "answer_accuracy", "eos_rate")


def evaluate(context: StageContext, evaluate: EvaluatePart, seed: int) -> Summary:
    """Write `predictions`, `importance`, `metrics`, `metrics.json` and `metrics_by_source`."""
    plan = plan_evaluation(context, evaluate, seed)
    baselines = _baseline_rows(context, plan)
    predictions: list[Row] = []
    looked: list[Row] = []
    metrics: list[Row] = []
    sources: list[Row] = []
    plain: list[Metric] = []
    with context.report.track("evaluate test images", plan.work) as tick:
        for stage in TRAINED:
            # One call each, so that the first model is freed before the second is loaded.
            rows, measured, words = _conditions(context, plan, stage, tick)
            predictions += rows
            sources += by_source(stage, rows, evaluate.resamples, seed)
            looked += words
            for name, rows in baselines.items():
                measured[name] = caption_metrics(rows)
                if stage == "finetune":
                    predictions += [{"stage": stage, "condition": name, **row} for row in rows]
            plain += measured[TEXT_ONLY]
            tick(0, "draw images for the intervals")
            metrics += summarize(stage, measured, evaluate.resamples, seed)
    metrics += change("text_nll_rise", "finetune", *plain, evaluate.resamples, seed)
    for number, row in enumerate(predictions):
        row["prediction_id"] = number
        for name in ("sha256", "mentions", "images", "greedy"):
            row.pop(name, None)
    write_table(context.out / "predictions.parquet", predictions, PREDICTIONS)
    write_table(context.out / "importance.parquet", table_rows(looked), IMPORTANCE)
    write_table(context.out / "metrics.parquet", metrics, METRICS)
    write_table(context.out / "metrics_by_source.parquet", sources, METRICS_BY_SOURCE)
    (context.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return _headline(metrics, len(predictions))


def _load(context: StageContext, plan: EvaluationPlan, stage: str) -> VisionLanguageModel:
    """Return the model of a stage, in the dtype of the finetuned model.

    The two are compared with each other, so both compute in the same dtype.
    """
    finetuned = context.inputs["finetune"].directory("lm")
    dtype = saved_dtype(finetuned)
    lm = context.inputs["backbones"].directory("lm") if stage == "pretrain" else finetuned
    vlm = load_pretrained(lm, context.inputs[stage], dtype, device=plan.device)
    forbid_ids(vlm.language_model, plan.template.tokenizer.get_vocab_size())
    return vlm


def _baseline_rows(context: StageContext, plan: EvaluationPlan) -> dict[str, list[Row]]:
    """Return captions that no language model wrote, as rows of predictions, by baseline."""
    inputs = context.inputs
    texts = baseline_captions(inputs["examples"], inputs["features"], context.settings.threads)
    if plan.consensus is not None:
        texts["neighbour_consensus"] = {
            task.fixed["sha256"]: plan.consensus.caption(plan.shown.show([task.row], "real")[0])
            for task in plan.captions
        }
    rows_of: dict[str, list[Row]] = {}
    for name, by_hash in texts.items():
        rows_of[name] = [
            {**task.fixed, "kind": "caption", "prediction": by_hash[task.fixed["sha256"]]}
            for task in plan.captions
        ]
        for row in rows_of[name]:
            plan.objects.judge(row)
    return rows_of


def _conditions(
    context: StageContext, plan: EvaluationPlan, stage: str, tick: Ticker
) -> tuple[list[Row], dict[str, list[Metric]], list[Row]]:
    """Return a stage's predictions under every condition, all metrics, and where it looked."""
    tick(0, f"load the model of {stage}")
    vlm = _load(context, plan, stage)
    # Pretraining learns from conversations where there are no captions.
    spoke = stage == "finetune" or not plan.captions
    tick(0, f"{stage} writes")
    tasks = [*plan.captions, *(plan.questions if spoke else ())]
    written = predict(_drawing(plan, stage), vlm, tasks, plan.shown.conditions, tick)
    tick(0, f"{stage} reads")
    likelihoods = model_likelihood(
        vlm,
        plan.examples,
        plan.answers,
        plan.shown,
        plan.shown.conditions,
        plan.evaluate,
        plan.device,
        tick,
        spoke=spoke,
    )
    said: list[Row] = []
    measured: dict[str, list[Metric]] = {}
    for condition in plan.shown.conditions:
        tick(0, f"{stage}, {condition}")
        rows, nats = written[condition], likelihoods[condition]
        chosen = choice(plan, vlm, condition, tick)
        measured[condition] = _measure(plan, rows, nats, chosen, spoke=spoke)
        if stage == "finetune":
            answered = presence(plan, vlm, condition, tick)
            measured[condition] += presence_metrics(answered) if answered else []
            rows += answered
        said += [{"stage": stage, "condition": condition, **row} for row in rows]
    nats = text_likelihood(vlm, plan.texts, plan.evaluate.batch, plan.device, tick)
    measured[TEXT_ONLY] = likelihood_metrics({"text_nll": nats})
    looked: list[Row] = []
    if stage == "finetune":
        tick(0, "hide one patch after the other")
        batch = plan.evaluate.batch
        looked = look(vlm, plan.template, said, plan.boxes, plan.shown, batch, tick)
        for condition, pointing in pointing_metrics(looked).items():
            measured[condition] += pointing
    return said, measured, looked


def _measure(
    plan: EvaluationPlan,
    rows: Sequence[Row],
    nats: dict[str, list[Nats]],
    chosen: list[Metric],
    *,
    spoke: bool,
) -> list[Metric]:
    """Return all metrics of a condition but presence: of what was written, read and chosen."""
    captions = [row for row in rows if row["kind"] == "caption"]
    for row in captions:
        plan.objects.judge(row)
    measured = caption_metrics(captions) if captions else []
    if captions and "greedy" in captions[0]:
        measured.append(greedy_metric(captions))
    measured.append(ending_metric([row for row in rows if row["split"] == "test"]))
    captioned = {"caption_nll"} if spoke else {"caption_nll", "nll"}
    measured += likelihood_metrics({name: nats[name] for name in sorted(captioned)})
    measured += chosen
    if spoke:
        answers = [row for row in rows if row["kind"] == "answer"]
        about = answer_metrics(answers) if answers else []
        spoken = {name: each for name, each in nats.items() if name not in captioned}
        about += likelihood_metrics(spoken)
        measured += [replace(each, split=plan.spoken) for each in about]
    return measured


def predict(
    plan: EvaluationPlan,
    vlm: VisionLanguageModel,
    tasks: Sequence[Task],
    conditions: Sequence[str],
    tick: Ticker = silent,
) -> dict[str, list[Row]]:
    """Return by condition what a model writes, as rows of predictions: captions, then answers."""
    rows: dict[str, list[Row]] = {condition: [] for condition in conditions}
    texts = write_texts(
        vlm,
        tasks,
        plan.shown,
        conditions,
        plan.evaluate,
        plan.template.eos_id,
        plan.device,
    )
    for condition, task, written in texts:
        row = _row(task, _chosen(plan, condition, task, written), plan.template)
        if len(written) > 1:
            row["greedy"] = plan.template.decode(written[0].ids)
        rows[condition].append(row)
        tick()
    for each in rows.values():
        each.sort(key=lambda row: (row["kind"], row["image_id"], row["question_id"] or 0))
    return rows


def _drawing(plan: EvaluationPlan, stage: str) -> EvaluationPlan:
    """Return the plan, of greedy captions alone for a model that is not published."""
    if stage == "finetune":
        return plan
    return replace(plan, evaluate=plan.evaluate.model_copy(update={"caption_samples": 0}))


def _chosen(
    plan: EvaluationPlan, condition: str, task: Task, texts: Sequence[Generated]
) -> Generated:
    """Return the only text, or the one on which captions of similar training images agree."""
    if plan.consensus is None or len(texts) == 1:
        return texts[0]
    (patches,) = plan.shown.show([task.row], condition)
    candidates = [plan.template.decode(text.ids) for text in texts]
    return texts[plan.consensus.choose(patches, candidates)]


def _row(task: Task, text: Generated, template: PromptTemplate) -> Row:
    prediction = template.decode(text.ids)
    row = {**task.fixed, "kind": task.kind, "prediction": prediction}
    row |= {"ended": text.ended, "tokens": len(text.ids)}
    if task.kind == "answer":
        row["score"] = answer_accuracy(prediction, task.fixed["references"])
    return row


def choice(
    plan: EvaluationPlan, vlm: VisionLanguageModel, condition: str, tick: Ticker = silent
) -> list[Metric]:
    """Return how often an image's own caption is likeliest with it, if there are two captions."""
    tasks = plan.captions[: plan.evaluate.likelihood_images]
    if len(tasks) < 2:
        return []
    scores = choice_scores(
        vlm,
        np.array([task.row for task in tasks], np.int64),
        [plan.template.caption(task.fixed["references"][0]) for task in tasks],
        plan.evaluate.choices,
        plan.shown,
        condition,
        plan.evaluate.batch,
        plan.device,
        tick,
    )
    images = [task.fixed["image_id"] for task in tasks]
    return [mean("image_choice", images, scores)]


def presence(
    plan: EvaluationPlan, vlm: VisionLanguageModel, condition: str, tick: Ticker = silent
) -> list[Row]:
    """Return the answers to questions about presence, as rows of predictions."""
    asked = plan.presence
    texts = [
        [each.text(plan.evaluate.presence_question) for each in questions] for _, questions in asked
    ]
    answers = presence_answers(
        vlm,
        plan.template,
        np.array([task.row for task, _ in asked], np.int64),
        texts,
        plan.evaluate.presence_answers,
        plan.shown,
        condition,
        plan.evaluate.batch,
        plan.device,
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
