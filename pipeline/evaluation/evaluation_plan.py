"""Everything that `evaluate` asks and shows the models of a run, fixed before any answer.

Where no conversation is about a test image (none of LLaVA-Instruct's is about COCO's val2017),
questions come from the validation split, and their metrics say so.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from model.caption_consensus import CaptionConsensus
from model.prompt import PromptTemplate
from pipeline.data.stored_images import open_patches
from pipeline.engine.devices import pick_device
from pipeline.engine.stage import StageContext
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.consensus import consensus_of
from pipeline.evaluation.likelihood import held_out_rows
from pipeline.evaluation.pointing import CONDITIONS as POINTED
from pipeline.evaluation.pointing import Boxes, read_boxes
from pipeline.evaluation.scorers.pope import PresenceQuestion
from pipeline.evaluation.tasks import MarkedObjects, Task, caption_tasks, question_tasks, spread
from pipeline.recipe.parts import EvaluatePart
from storage.tables import read_table, where

Row = dict[str, Any]
TRAINED = ("pretrain", "finetune")  # stages whose models are evaluated


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything that a model is asked and shown.

    Attributes:
        template: The prompt template.
        captions: One task per test image with a caption; empty where no image has captions.
        questions: One task per held-out question.
        spoken: Split of the questions and conversations: `test`, or `validation`.
        answers: Rows of the `questions` table of that split.
        examples: Held-out examples by kind, for likelihoods.
        objects: Marked objects.
        presence: Questions about presence, with the captions' tasks.
        boxes: The images for which it is measured where the model looks.
        shown: Patch embeddings by condition.
        evaluate: The recipe's part.
        device: Where to compute.
        consensus: What captions are chosen by; None if there is one caption of each image.
    """

    template: PromptTemplate
    captions: list[Task]
    questions: list[Task]
    spoken: str
    answers: list[Row]
    examples: dict[str, list[Row]]
    objects: MarkedObjects
    presence: list[tuple[Task, list[PresenceQuestion]]]
    boxes: Boxes
    shown: Shown
    evaluate: EvaluatePart
    device: str
    consensus: CaptionConsensus | None = None

    @property
    def texts(self) -> list[Row]:
        """Examples about one test image, which are also read without any image."""
        rows = [row for kind in self.examples.values() for row in kind]
        return [row for row in rows if row["split"] == "test" and not row["more_sha256"]]

    @property
    def work(self) -> int:
        """How many texts and images are processed in all, over stages and conditions."""
        captions, spoken = (len(self.examples[kind]) for kind in ("caption", "conversation"))
        choice = min(len(self.captions), self.evaluate.likelihood_images)
        both = len(TRAINED) * (len(self.captions) + captions + choice)
        last = len(self.questions) + spoken + len(self.presence)
        looked = len(self.boxes.tasks) * sum(name in POINTED for name in self.shown.conditions)
        texts = len(TRAINED) * len(self.texts)
        last *= 1 if self.captions else len(TRAINED)  # pretraining is asked the questions, too
        return (both + last) * len(self.shown.conditions) + texts + looked


def plan_evaluation(context: StageContext, evaluate: EvaluatePart, seed: int) -> EvaluationPlan:
    """Return what a recipe asks of the models of a run."""
    patches = open_patches(context.inputs["features"])
    table = read_table(context.inputs["examples"].path("examples.parquet"))
    stored = json.loads(context.inputs["examples"].path("template.json").read_text())
    template = PromptTemplate.load(context.inputs["backbones"].directory("lm"), **stored)
    spoken, answers = _answers(read_table(context.inputs["examples"].path("questions.parquet")))
    captions = caption_tasks(table, patches, template, evaluate)
    questions = question_tasks(spread(answers, evaluate.questions, seed), patches, template)
    alone = [task for task in questions if not task.more]
    pointed = _one_per_image(captions or alone)[: evaluate.pointing_images]
    train = where(table, split="train")["sha256"].drop_null().unique().to_pylist()
    shown_rows = [row for task in (*captions, *questions) for row in (task.row, *task.more)]
    tested = np.array(shown_rows, np.int64)
    shown = Shown(patches, tested, patches.rows_of(train), seed)
    splits = {"caption": ("test", evaluate.images), "conversation": (spoken, evaluate.questions)}
    objects = MarkedObjects(context.inputs["images"], seed)
    return EvaluationPlan(
        template,
        captions,
        questions,
        spoken,
        answers,
        {kind: held_out_rows(table, shown, kind, *each, seed) for kind, each in splits.items()},
        objects,
        objects.questions(captions, evaluate),
        read_boxes(context, pointed, objects.names),
        shown,
        evaluate,
        pick_device(context.settings),
        consensus_of(context, evaluate),
    )


def _one_per_image(tasks: list[Task]) -> list[Task]:
    """Return the first task of each image."""
    return list({task.fixed["image_id"]: task for task in reversed(tasks)}.values())[::-1]


def _answers(table: pa.Table) -> tuple[str, list[Row]]:
    """Return the questions about test images, or if there are none, those of validation."""
    for split in ("test", "validation"):
        rows = where(table, split=split).to_pylist()
        if rows:
            return split, rows
    return "test", []
