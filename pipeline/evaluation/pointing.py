"""Where a model looked for its words, and whether people marked the named objects there.

The words are those that the model wrote about the real image. Under `shuffled` the very same words
are explained with another image, while the boxes stay those of the real one: that is the score of
a model's habits alone.

Sources: Zeiler & Fergus 2014 (arXiv 1311.2901) for the maps; Zhang et al. 2016 (arXiv 1608.00507)
for the pointing game, which asks only whether the maximum of a map is on the object.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.encoder import PatchEncoder
from model.explanation import by_word
from model.importance import importance_maps
from model.patch_grid import View, grid_side
from model.prompt import PromptTemplate
from model.view import view_of
from model.vlm import VisionLanguageModel
from pipeline.engine.stage import StageContext
from pipeline.evaluation.boxes import Box, patches_in_boxes
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.metrics import Metric, mean, ratio
from pipeline.evaluation.scorers.chair import ObjectNames
from pipeline.evaluation.tasks import Task
from pipeline.progress import Ticker, silent
from storage.tables import read_table

Row = dict[str, Any]
CONDITIONS = ("real", "shuffled")  # under which words are explained
EXPLAINED = ("caption", "answer")
IMPORTANCE = pa.schema(
    [
        ("prediction_id", pa.int64()),
        ("image_id", pa.int64()),
        ("condition", pa.string()),
        ("number", pa.int32()),
        ("word", pa.string()),
        ("importance", pa.list_(pa.float32())),
        ("category", pa.string()),
        ("share", pa.float64()),
        ("hit", pa.bool_()),
        ("view_left", pa.float64()),
        ("view_top", pa.float64()),
        ("view_width", pa.float64()),
        ("view_height", pa.float64()),
    ]
)
_KEPT = IMPORTANCE.names[1:]
_SIDES = ("left", "top", "width", "height")
_TOGETHER = 4  # texts about an image in one row, so that rows stay short


class Mention(NamedTuple):
    """All words of a text that are about one category.

    Attributes:
        image_id: The image.
        inside: Positive importance for these words, in nats, in patches that hold the category.
        positive: Positive importance for them, in nats, in all patches.
        hit: Whether the most important patch holds the category.
    """

    image_id: int
    inside: float
    positive: float
    hit: bool


@dataclass(frozen=True)
class Boxes:
    """What people marked in the examined images, and which part of each the encoder sees.

    Attributes:
        tasks: The images' caption tasks, in order.
        views: The part of each image that the encoder sees.
        marked: Boxes by image and category, in pixels of the image.
        names: Finds categories in texts.
    """

    tasks: list[Task]
    views: dict[int, View]
    marked: dict[int, dict[str, list[Box]]]
    names: ObjectNames

    def named(self, row: Row, words: Sequence[str]) -> list[str | None]:
        """Return for each word of a prediction the marked category that it is about, or None.

        That is the category that the word names. If an answer names none, all its words are about
        the one that its question names.
        """
        categories = self.names.by_word(words)
        if row["kind"] == "answer" and not any(categories):
            asked = set(self.names.mentioned(row["question"]))
            categories = [asked.pop() if len(asked) == 1 else None] * len(words)
        there = self.marked.get(row["image_id"], {})
        return [name if name in there else None for name in categories]

    def patches(self, image_id: int, category: str, side: int) -> NDArray[np.bool_]:
        """Return which patches of an image hold a category, bool [patch]."""
        return patches_in_boxes(self.marked[image_id][category], self.views[image_id], side)


def read_boxes(context: StageContext, tasks: Sequence[Task], names: ObjectNames) -> Boxes:
    """Return the marked objects of the images of caption tasks.

    Raises:
        ModelError: It is not known which part of an image the encoder sees.
    """
    wanted = {task.fixed["image_id"] for task in tasks}
    views: dict[int, View] = {}
    marked: dict[int, dict[str, list[Box]]] = {}
    if wanted:
        encoder = PatchEncoder(context.inputs["backbones"].directory("clip"), -1)
        images = context.inputs["images"]
        sizes = read_table(images.path("images.parquet"), ["image_id", "width", "height"])
        for row in sizes.to_pylist():
            if row["image_id"] in wanted:
                view = view_of(encoder.preprocess, row["width"], row["height"])
                views[row["image_id"]] = view
        columns = ["image_id", "category", "x", "y", "width", "height"]
        for row in read_table(images.path("objects.parquet"), columns).to_pylist():
            if row["image_id"] in wanted:
                of_image = marked.setdefault(row["image_id"], {})
                box = (row["x"], row["y"], row["width"], row["height"])
                of_image.setdefault(row["category"], []).append(box)
    return Boxes(list(tasks), views, marked, names)


def look(
    vlm: VisionLanguageModel,
    template: PromptTemplate,
    predictions: Sequence[Row],
    boxes: Boxes,
    shown: Shown,
    batch: int,
    tick: Ticker = silent,
) -> list[Row]:
    """Return a row for each word that was written about the images.

    Under `shuffled` only texts that name a marked object are used. Besides the columns of
    `IMPORTANCE` a row has its prediction, whose id is not known yet, and its `Mention` or None.

    Args:
        vlm: The model that wrote the texts.
        template: The prompt template.
        predictions: Rows of predictions, with `images`, the number of their images; captions and
            answers about one real image are used.
        boxes: The images, and what people marked in them.
        shown: Patch embeddings by condition.
        batch: Variants of an image per forward pass.
        tick: Called after every finished image, once for each condition.
    """
    texts: dict[int, list[Row]] = {}
    for row in predictions:
        if row["condition"] == "real" and row["kind"] in EXPLAINED and row["images"] == 1:
            texts.setdefault(row["image_id"], []).append(row)
    looked_at: list[Row] = []
    for condition in (name for name in CONDITIONS if name in shown.conditions):
        for task in boxes.tasks:
            written = [row for row in texts.get(task.fixed["image_id"], ()) if row["prediction"]]
            if condition != "real":
                pointing = {id(row["prediction"]) for row in looked_at if row["mention"]}
                written = [row for row in written if id(row) in pointing]
            patches = shown.show([task.row], condition)[0]
            for start in range(0, len(written), _TOGETHER):
                part = written[start : start + _TOGETHER]
                asked = [_ids(row, template) for row in part]
                maps = importance_maps(vlm, patches, asked, batch)
                for row, (_, answer), tokens in zip(part, asked, maps, strict=True):
                    words, values = by_word(template, answer, tokens)
                    looked_at += _word_rows(row, condition, words, values, boxes)
            tick()
    return looked_at


def pointing_metrics(rows: Sequence[Row]) -> dict[str, list[Metric]]:
    """Return by condition how much of the importance for words is on the objects they name.

    `pointing` is the share of the positive importance that is inside the boxes, summed over all
    mentions, so that words with little importance have little weight. `pointing_game` is how often
    the most important patch is inside.
    """
    by_condition: dict[str, list[Metric]] = {}
    for condition in CONDITIONS:
        here = [row for row in rows if row["condition"] == condition and row["mention"]]
        # All words of a mention share one `Mention`.
        mentions: list[Mention] = list(
            {id(row["mention"]): row["mention"] for row in here}.values()
        )
        mentions = [each for each in mentions if each.positive > 0]
        if mentions:
            images = [each.image_id for each in mentions]
            inside, positive = ([each[part] for each in mentions] for part in (1, 2))
            share = replace(ratio("pointing", images, inside, positive), count=len(mentions))
            game = mean("pointing_game", images, [float(each.hit) for each in mentions])
            by_condition[condition] = [share, game]
    return by_condition


def table_rows(rows: Sequence[Row]) -> list[Row]:
    """Return what `look` returned as rows of `IMPORTANCE`, once predictions have their ids."""
    return [
        {"prediction_id": row["prediction"]["prediction_id"], **{k: row[k] for k in _KEPT}}
        for row in rows
    ]


def _ids(row: Row, template: PromptTemplate) -> tuple[list[int], list[int]]:
    """Return the token ids of a prompt and of what was written after it."""
    if row["kind"] == "caption":
        return template.caption_prompt, template.captioned(row["prediction"])
    return template.question(row["question"]), template.answer(row["prediction"])


def _word_rows(
    row: Row,
    condition: str,
    words: Sequence[str],
    maps: NDArray[np.float32],
    boxes: Boxes,
) -> list[Row]:
    named, view = boxes.named(row, words), boxes.views[row["image_id"]]
    mentions: dict[str, Mention] = {}
    for category in filter(None, dict.fromkeys(named)):
        mine = [number for number, name in enumerate(named) if name == category]
        values = maps[mine].sum(axis=0, dtype=np.float64)
        holds = boxes.patches(row["image_id"], category, grid_side(len(values)))
        if holds.any():  # else it is outside of what the encoder sees
            positive = values.clip(min=0)
            inside, everywhere = float(positive[holds].sum()), float(positive.sum())
            hit = bool(holds[values.argmax()])
            mentions[category] = Mention(row["image_id"], inside, everywhere, hit)
    word_rows = []
    for number, (word, category, values) in enumerate(zip(words, named, maps, strict=True)):
        mention = mentions.get(category or "")
        known = mention is not None and mention.positive > 0
        word_rows.append(
            {
                "prediction": row,
                "image_id": row["image_id"],
                "condition": condition,
                "number": number,
                "word": word,
                "importance": values.tolist(),
                "mention": mention,
                "category": category if mention else None,
                "share": mention.inside / mention.positive if mention and known else None,
                "hit": mention.hit if mention and known else None,
                **{f"view_{side}": getattr(view, side) for side in _SIDES},
            }
        )
    return word_rows
