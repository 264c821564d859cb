"""Stage `publish`: one self-describing folder with everything the assistant needs, and its card."""

import json
import shutil
from collections.abc import Sequence
from typing import Any

from model.bundle import BUNDLE, FORMAT, PREFIX, PREFIX_CONFIG, TWO_ENCODERS
from model.encoder_table import SECOND
from pipeline.data.stored_images import has_second
from pipeline.engine.stage import StageContext, Summary
from pipeline.evaluation.consensus import consensus_of
from pipeline.publishing.bundle_parts import bundle_parts
from pipeline.publishing.model_card import model_card
from pipeline.publishing.trained_images import (
    learned_texts,
    most_images,
    reference_of,
    trained_images,
)
from pipeline.recipe.parts import EvaluatePart, FeaturesPart, ImagesPart, PublishPart
from storage.clones import clone_folder

MAX_PIXELS = 50_000_000  # of an image that a user sends; about 8,000 by 6,000


def publish(
    context: StageContext,
    publish: PublishPart,
    features: FeaturesPart,
    evaluate: EvaluatePart,
    images: ImagesPart,
    seed: int,
) -> Summary:
    """Write the bundle: `clip/`, `lm/`, the vision prefix, `bundle.json` and `README.md`.

    A second encoder is in `second/`. `reference.safetensors` holds embeddings of training images,
    for `model.training_reference`. Where captions are drawn, `consensus.safetensors` and
    `consensus.json` hold those that choose among them, for `model.caption_consensus`.
    """
    del seed
    joined = has_second(context.inputs["backbones"])
    _copy_models(context, ("clip", SECOND) if joined else ("clip",))
    trained_on = _trained_on(context, images.source.phrase)
    metrics = json.loads(context.inputs["evaluate"].path("metrics.json").read_text())
    card: dict[str, Any] = {
        "format": TWO_ENCODERS if joined else FORMAT,
        "name": publish.name,
        "parts": bundle_parts(context.out),
        "layer": features.layer,
        **({"second_layer": features.second_layer} if joined else {}),
        "patches": features.patches,
        "template": json.loads(context.inputs["examples"].path("template.json").read_text()),
        "beams": evaluate.beams,
        **_drawn(context, evaluate),
        "max_new_tokens": evaluate.max_new_tokens,
        "max_pixels": MAX_PIXELS,
        "max_images": most_images(context.inputs["examples"]),
        "text_only": learned_texts(context.inputs["examples"]),
        "trained_on": trained_on,
        "metrics": [row for row in metrics if row["stage"] == "finetune"],
    }
    (context.out / BUNDLE).write_text(json.dumps(card, indent=1, sort_keys=True))
    (context.out / "README.md").write_text(model_card(card), encoding="utf-8")
    size = sum(path.stat().st_size for path in context.out.rglob("*") if path.is_file())
    return {
        "name": publish.name,
        "bytes": size,
        "trained_on": trained_on["sentence"],
        "least_similarity": trained_on.get("least_similarity"),
    }


def _copy_models(context: StageContext, encoders: Sequence[str]) -> None:
    for name in encoders:
        clone_folder(context.inputs["backbones"].directory(name), context.out / name)
    clone_folder(context.inputs["finetune"].directory("lm"), context.out / "lm")
    for name in (PREFIX, PREFIX_CONFIG):
        shutil.copyfile(context.inputs["finetune"].path(name), context.out / name)


def _drawn(context: StageContext, evaluate: EvaluatePart) -> dict[str, Any]:
    """Return the card's entries on captions that are drawn, after writing what chooses."""
    consensus = consensus_of(context, evaluate)
    if consensus is None:
        return {}
    consensus.save(context.out)
    return {name: getattr(evaluate, name) for name in ("caption_samples", "sample_temperature")}


def _trained_on(context: StageContext, what: str) -> dict[str, Any]:
    """Return the card's entry on the training images, after writing those that are kept."""
    trained = trained_images(context.inputs["examples"])
    sentence = f"It was trained on {len(trained):,} images: {what}."
    stated = {"what": what, "images": len(trained), "sentence": sentence}
    reference = reference_of(trained, context.inputs["features"], what)
    return stated if reference is None else stated | reference.save(context.out)
