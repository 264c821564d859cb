"""What a model is asked about test images: captions, questions, presence, all by the recipe."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from model.prompt import IMAGE_MARK, MARKER, PromptTemplate
from pipeline.data.stored_images import Patches
from pipeline.engine.stage import InputArtifact
from pipeline.evaluation.scorers.chair import ObjectNames
from pipeline.evaluation.scorers.pope import PresenceAsker, PresenceQuestion, objects_by_image
from pipeline.recipe.parts import EvaluatePart
from storage.tables import read_table, where

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One input for generation: an image, a prompt, and what people wrote.

    Attributes:
        kind: `caption` or `answer`.
        row: Row of the image's patch embeddings.
        prompt: Token ids after the image.
        fixed: Columns of the prediction that are known beforehand.
        more: Rows of the further images that the prompt names.
    """

    kind: str
    row: int
    prompt: list[int]
    fixed: Row
    more: tuple[int, ...] = ()


def spread(rows: Sequence[Row], limit: int, seed: int) -> list[Row]:
    """Return at most `limit` rows in their own order, spread evenly over the images.

    The first rows of a table are about its first images, so a plain limit would leave most images
    out. Here no image gets a third row before every image with two rows got its second.

    Args:
        rows: Rows with an `image_id`.
        limit: How many, at most.
        seed: Seed of the choice among an image's rows, and of the images that come last.
    """
    taken: Counter[int] = Counter()
    ranked: list[tuple[int, int, int]] = []
    for turn, place in enumerate(np.random.default_rng([seed, 17]).permutation(len(rows)).tolist()):
        image = rows[place]["image_id"]
        ranked.append((taken[image], turn, place))
        taken[image] += 1
    return [rows[place] for place in sorted(place for _, _, place in sorted(ranked)[:limit])]


def caption_tasks(
    table: pa.Table, patches: Patches, template: PromptTemplate, evaluate: EvaluatePart
) -> list[Task]:
    """Return one caption task per test image, by image id; `sha256` is among the known columns."""
    test = where(table, split="test", kind="caption")
    by_image: dict[tuple[int, str, str], list[str]] = {}
    for row in test.select(["image_id", "sha256", "source", "text"]).to_pylist():
        key = (row["image_id"], row["sha256"], row["source"])
        by_image.setdefault(key, []).append(row["text"])
    chosen = sorted(by_image)[: evaluate.images]
    rows = patches.rows_of([sha256 for _, sha256, _ in chosen])
    return [
        Task("caption", int(row), template.caption_prompt, _fixed("test", *key, by_image[key]))
        for key, row in zip(chosen, rows, strict=True)
    ]


def question_tasks(
    questions: Sequence[Row],
    patches: Patches,
    template: PromptTemplate,
) -> list[Task]:
    """Return one answer task per question."""
    rows = patches.rows_of([row["sha256"] for row in questions])
    return [
        Task(
            "answer",
            int(at),
            _prompt(row, template),
            {
                **_fixed(
                    row["split"], row["image_id"], row["sha256"], row["source"], [row["answer"]]
                ),
                "question_id": row["question_id"],
                "question": row["question"],
                "images": 1 + len(row["more_sha256"]),
            },
            tuple(patches.rows_of(row["more_sha256"]).tolist()),
        )
        for row, at in zip(questions, rows, strict=True)
    ]


def _prompt(row: Row, template: PromptTemplate) -> list[int]:
    """Return the prompt of a row of the `questions` table, whose text has a dataset's markers."""
    named = row["question"].count(MARKER)
    question = row["question"].replace(MARKER, IMAGE_MARK)
    return template.question(question, more=len(row["more_sha256"]) - named)


class MarkedObjects:
    """What people marked in the images of an `images` artifact, for presence and CHAIR.

    Attributes:
        by_image: Categories of every image.
        names: Finds these categories in texts.

    Args:
        images: The artifact.
        seed: Seed of the random presence questions.
    """

    def __init__(self, images: InputArtifact, seed: int) -> None:
        table = read_table(images.path("objects.parquet"), ["image_id", "category"])
        self.by_image = objects_by_image(table.to_pylist())
        self._asker = PresenceAsker(self.by_image, seed)
        self.names = ObjectNames({name for names in self.by_image.values() for name in names})

    def questions(
        self, tasks: Sequence[Task], evaluate: EvaluatePart
    ) -> list[tuple[Task, list[PresenceQuestion]]]:
        """Return the presence questions about the images of caption tasks that have any."""
        asked = [
            (task, self._asker.ask(task.fixed["image_id"], evaluate.presence_objects))
            for task in tasks[: evaluate.likelihood_images]
        ]
        return [(task, questions) for task, questions in asked if questions]

    def judge(self, caption: Row) -> None:
        """Write into a caption's row its hallucinated objects and its number of mentions.

        Both are None where the dataset marks no objects.
        """
        caption["hallucinated"] = caption["mentions"] = None
        if self.by_image:
            marked = self.by_image.get(caption["image_id"], [])
            caption["hallucinated"], caption["mentions"] = self.names.hallucinated(
                caption["prediction"], marked, caption["references"]
            )


def _fixed(split: str, image_id: int, sha256: str, source: str, references: list[str]) -> Row:
    return {
        "source": source,
        "split": split,
        "image_id": image_id,
        "sha256": sha256,
        "question_id": None,
        "question": "",
        "images": 1,
        "references": references,
    }
