"""The demo's backbones: a tiny CLIP and a tiny Phi, trained on the training split itself."""

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model.tiny_clip import tiny_clip_config, train_tiny_clip
from model.tiny_phi import BLOCK, train_tiny_phi
from pipeline.data.image_names import NAMED_IMAGES_SQL
from pipeline.data.stored_images import read_images
from pipeline.engine.devices import use_threads
from pipeline.engine.stage import StageContext, Summary
from pipeline.errors import PipelineError
from pipeline.recipe.backbone_parts import TinyBackbones
from storage.sql.queries import Database
from storage.tables import read_table


def train_tiny_backbones(context: StageContext, tiny: TinyBackbones, seed: int) -> Summary:
    """Train both backbones and write the folders `clip` and `lm`.

    A finished model is kept in the scratch folder, so that a killed run trains only the rest.

    Raises:
        PipelineError: No training image has a caption.
    """
    use_threads(context.settings)
    clip_loss = _once(context, "clip", lambda folder: _clip(context, tiny, seed, folder))
    lm_loss = _once(context, "lm", lambda folder: _lm(context, tiny, seed, folder))
    return {"clip_loss": round(clip_loss, 4), "lm_loss": round(lm_loss, 4)}


def _once(context: StageContext, name: str, train: Callable[[Path], float]) -> float:
    finished, growing = context.scratch / name, context.scratch / f"{name}.growing"
    if not finished.is_dir():
        shutil.rmtree(growing, ignore_errors=True)
        loss = train(growing)
        (growing / "loss").write_text(repr(loss))
        growing.rename(finished)
    loss = float((finished / "loss").read_text())
    shutil.copytree(finished, context.out / name, ignore=shutil.ignore_patterns("loss"))
    return loss


def _clip(context: StageContext, tiny: TinyBackbones, seed: int, folder: Path) -> float:
    captions = _training_captions(context)
    if not captions:
        raise PipelineError(
            "no training image has a caption, so the tiny CLIP has nothing to learn",
            "look at images.source, images.limit and images.validation_share",
        )

    def prepared(preprocess: Callable[[Image.Image], Tensor]) -> Tensor:
        pixels = {}
        with context.report.track("prepare images", len(captions)) as tick:
            for sha256, image in read_images(context.inputs["images"], captions):
                pixels[sha256] = preprocess(image)
                tick()
        return torch.stack([pixels[sha256] for sha256 in captions])

    config = tiny_clip_config(
        image_size=tiny.image_size,
        patch_size=tiny.patch_size,
        width=tiny.clip_width,
        layers=tiny.clip_layers,
        text_width=tiny.clip_text_width,
        text_layers=tiny.clip_text_layers,
        embed=tiny.clip_embed,
    )
    steps = tiny.clip_epochs * (len(captions) // min(tiny.clip_batch, len(captions)))
    with context.report.track("train the tiny CLIP", steps) as tick:
        return train_tiny_clip(
            config,
            folder,
            prepared,
            list(captions.values()),
            epochs=tiny.clip_epochs,
            batch=tiny.clip_batch,
            learning_rate=tiny.clip_learning_rate,
            seed=seed,
            advance=tick,
        )


def _lm(context: StageContext, tiny: TinyBackbones, seed: int, folder: Path) -> float:
    documents = _documents(context)
    # Rows are known after tokenizing; four characters per token is close enough for a bar.
    rows = sum(len(text) for texts in documents for text in texts) // (4 * BLOCK)
    steps = max(1, tiny.lm_epochs * rows // tiny.lm_batch)
    with context.report.track("train the tiny Phi", steps) as tick:
        return train_tiny_phi(
            documents,
            folder,
            vocabulary=tiny.lm_vocabulary,
            width=tiny.lm_width,
            layers=tiny.lm_layers,
            heads=tiny.lm_heads,
            epochs=tiny.lm_epochs,
            batch=tiny.lm_batch,
            learning_rate=tiny.lm_learning_rate,
            seed=seed,
            advance=tick,
        )


def _documents(context: StageContext) -> list[list[str]]:
    """Return all texts about each training image: captions, and questions with answers.

    A language model that reads them one after the other learns to predict texts from what came
    before. Without that, no prefix could tell it anything while it is frozen.
    """
    captions, turns = _training_captions(context), _training_turns(context)
    return [[*captions[sha256], *turns.get(sha256, ())] for sha256 in captions]


def _training_captions(context: StageContext) -> dict[str, list[str]]:
    """Return the captions of each training image, in single spaces, by its hash, sorted."""
    hashes = {row["image_id"]: row["sha256"] for row in _training_images(context)}
    captions: dict[str, list[str]] = defaultdict(list)
    table = read_table(context.inputs["images"].path("captions.parquet"))
    for row in table.to_pylist():
        if row["image_id"] in hashes and row["caption"].strip():
            captions[hashes[row["image_id"]]].append(" ".join(row["caption"].split()))
    return dict(sorted(captions.items()))


def _training_turns(context: StageContext) -> dict[str, list[str]]:
    """Return each question with its answer, by the hash of the training image it is about."""
    images = read_table(context.inputs["images"].path("images.parquet"))
    table = read_table(context.inputs["conversations"].path("conversations.parquet"))
    with Database({"images": images, "conversations": table}) as database:
        named = database.query(NAMED_IMAGES_SQL).to_pylist()
    hashes = {p["conversation_id"]: p["sha256"] for p in named if p["split"] == "train"}
    by_image: dict[str, list[str]] = defaultdict(list)
    for row in table.to_pylist():
        sha256 = hashes.get(row["conversation_id"])
        if sha256 is not None:
            turns = [turn["text"].replace("<image>", "").strip() for turn in row["turns"]]
            pairs = zip(turns[::2], turns[1::2], strict=False)
            by_image[sha256] += [f"{question}\n {answer}" for question, answer in pairs]
    return by_image


def _training_images(context: StageContext) -> list[dict[str, Any]]:
    rows = read_table(context.inputs["images"].path("images.parquet")).to_pylist()
    return [row for row in rows if row["split"] == "train"]
