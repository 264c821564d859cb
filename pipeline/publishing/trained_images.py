"""The training images that a bundle keeps, so that it can tell when an image is unlike all of them.

They are chosen by a fixed rule: the files with the smallest SHA-256, which is as good as a random
draw, whatever the order of the dataset.
"""

from model.training_reference import FEWEST, TrainingReference, make_reference
from pipeline.data.pooled_images import pooled_images
from pipeline.engine.stage import InputArtifact
from storage.tables import read_table, where

MOST = 2000  # images kept: 3 MB of embeddings of CLIP ViT-B/32


def trained_images(examples: InputArtifact) -> list[str]:
    """Return the SHA-256 of every image that a training example is about, sorted."""
    table = read_table(examples.path("examples.parquet"), ["sha256", "more_sha256", "split"])
    train = where(table, split="train")
    further = {sha256 for row in train["more_sha256"].to_pylist() for sha256 in row}
    return sorted(further | set(train["sha256"].drop_null().to_pylist()))


def most_images(examples: InputArtifact) -> int:
    """Return how many images a training example is about, at most."""
    table = read_table(examples.path("examples.parquet"), ["more_sha256", "split"])
    further = where(table, split="train")["more_sha256"].to_pylist()
    return 1 + max(map(len, further), default=0)


def learned_texts(examples: InputArtifact) -> bool:
    """Return whether there are training examples of text alone."""
    table = read_table(examples.path("examples.parquet"), ["sha256", "split"])
    return where(table, split="train")["sha256"].null_count > 0


def reference_of(
    trained: list[str], features: InputArtifact, what: str
) -> TrainingReference | None:
    """Return what a bundle compares images to, None if there are too few training images."""
    if len(trained) < FEWEST:
        return None
    return make_reference(pooled_images(features, trained[:MOST]), what)
