"""The training images whose captions choose a test image's caption, and that of any other image.

They are chosen by a fixed rule: the files with the smallest SHA-256, which is as good as a random
draw, whatever the order of the dataset.
"""

from model.caption_consensus import CaptionConsensus
from pipeline.data.pooled_images import pooled_images
from pipeline.engine.stage import StageContext
from pipeline.recipe.parts import EvaluatePart
from storage.tables import read_table, where

MOST = 2000  # images


def consensus_of(context: StageContext, evaluate: EvaluatePart) -> CaptionConsensus | None:
    """Return what captions are chosen by, None where none is drawn or no image has captions.

    Args:
        context: Its inputs hold the artifacts `examples` and `features`.
        evaluate: Says whether captions are drawn.
    """
    if not evaluate.caption_samples:
        return None
    table = read_table(
        context.inputs["examples"].path("examples.parquet"), ["sha256", "kind", "split", "text"]
    )
    captions: dict[str, list[str]] = {}
    for row in where(table, split="train", kind="caption").to_pylist():
        captions.setdefault(row["sha256"], []).append(row["text"])
    if not captions:
        return None
    hashes = sorted(captions)[:MOST]
    pooled = pooled_images(context.inputs["features"], hashes)
    return CaptionConsensus(pooled.half(), [captions[sha256] for sha256 in hashes])
