"""How much work each stage has, from the numbers of a recipe and of its data; imports no torch.

The unit is the stage's own (images, examples, texts), since work is only compared with that of
earlier artifacts of the same stage: see `pipeline.costs.stage_seconds`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

Parts = Mapping[str, Any]  # parts of a recipe, as JSON
Counts = Mapping[str, float]  # how many images, records and examples there are

SPLITS = ("train", "validation", "test")
KINDS = ("captions", "conversations")
# Of a training example: only the forward pass, of which the backward pass takes twice the time.
VALIDATED = 1 / 3
CONDITIONS = 3  # the own image, another one, none
MODELS = 2  # evaluated: before and after finetuning
POINTED = 2  # conditions under which each patch is hidden once
FULL = 0.9  # of a limit; with fewer images a dataset has been used up


def counts_of(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the counts behind an artifact, as far as the summaries of its inputs have them."""
    counts: dict[str, float] = {}
    if "images" in figures:
        counts["images"] = figures["images"]["images"]
    if "conversations" in figures:
        spoken = figures["conversations"]
        counts["conversations"] = spoken["conversations"]
        counts["turns"] = _ratio(spoken["conversations"], spoken["turns"])  # of a conversation
    if "examples" in figures:
        names = [f"{split}_{kind}" for split in SPLITS for kind in KINDS]
        counts |= {name: figures["examples"].get(name, 0) for name in names}
    if "images" in figures and "examples" in figures:
        # Images have nearly the same number of captions in every split.
        kind = KINDS[0] if counts["train_captions"] else KINDS[1]
        texts = {split: counts[f"{split}_{kind}"] for split in SPLITS}
        whole = sum(texts.values())
        counts |= {f"{s}_images": counts["images"] * n / whole for s, n in texts.items()}
    return counts


def scaled_counts(counts: Counts, before: Parts, after: Parts) -> dict[str, float]:
    """Return the counts that another recipe would have of the same kind of data.

    Where a limit, or the size of the rendered dataset, decided how many images there are, they
    grow with it; where there were fewer, the dataset is used up and only a lower limit counts.
    """
    held = counts["train_images"] + counts["validation_images"]
    old, new = before["images"], after["images"]
    limits = [_limits(part) for part in (old, new)]
    learned = _scale(held, limits[0][0], limits[1][0])
    tested = _scale(counts["test_images"], limits[0][1], limits[1][1])
    shares = [part["validation_share"] for part in (old, new)]
    ratios = {
        "train": learned * _ratio(1 - shares[0], 1 - shares[1]),
        "validation": learned * _ratio(shares[0], shares[1]),
        "test": tested,
    }
    scaled = {
        f"{split}_{kind}": counts[f"{split}_{kind}"] * ratio
        for split, ratio in ratios.items()
        for kind in ("images", *KINDS)
    }
    images = sum(scaled[f"{split}_images"] for split in SPLITS)
    rendered = after["conversations"]["source"]["kind"] == "demo"
    growth = _ratio(counts["images"], images) if rendered else 1.0
    records = counts["conversations"] * growth
    return scaled | {"images": images, "conversations": records, "turns": counts["turns"]}


def _limits(images: Parts) -> tuple[float, float]:
    """Return how many images there can be at most: to learn from, and to test."""
    source, limits = images["source"], (images["limit"], images["test_limit"])
    if source["kind"] != "demo":
        return limits
    return min(limits[0], source["train"]), min(limits[1], source["test"])


def _scale(actual: float, before: float, after: float) -> float:
    """Return by how much a number changes whose limit changes."""
    if actual < FULL * before:
        return min(actual, after) / actual if actual else 1.0
    return after / before


def _ratio(before: float, after: float) -> float:
    return after / before if before else 1.0


def work_of(stage: str, parts: Parts, counts: Counts) -> float:
    """Return how much a stage has to do.

    Raises:
        KeyError: A part or a count that decides it is missing.
    """
    return _WORK[stage](parts, counts)


def _backbones(parts: Parts, counts: Counts) -> float:
    tiny = parts["backbones"]
    if tiny["kind"] != "tiny":
        return 1.0  # files that are copied or fetched
    return counts["images"] * (tiny["clip_epochs"] + tiny["lm_epochs"])


def _examples(parts: Parts, counts: Counts) -> float:
    return sum(counts[f"{split}_{kind}"] for split in SPLITS for kind in KINDS)


def _pretrain(parts: Parts, counts: Counts) -> float:
    kind = KINDS[0] if counts["train_captions"] else KINDS[1]
    sizes = [counts[f"{split}_{kind}"] for split in SPLITS]
    return _training(parts["pretrain"], sizes[0], sizes[1], counts["train_images"])


def _finetune(parts: Parts, counts: Counts) -> float:
    part = parts["finetune"]
    sizes = [_mixed(counts, split, part["caption_share"]) for split in SPLITS]
    return _training(part, sizes[0], sizes[1], counts["train_images"])


def _mixed(counts: Counts, split: str, captions: float) -> float:
    """Return how many examples finetuning takes of a split."""
    known, spoken = (counts[f"{split}_{kind}"] for kind in KINDS)
    if captions == 1:
        return known
    return spoken + min(known, spoken * captions / (1 - captions))


def _training(part: Parts, train: float, held_out: float, images: float) -> float:
    """Return the examples of all epochs, and those of all validations as far as they count."""
    rows = max(min(images, train), train / part["examples_per_row"])
    rounds = math.ceil(part["epochs"] * rows / part["batch"] / part["validate_every"])
    validated = rounds * min(held_out, part["validation_examples"])
    return part["epochs"] * train + VALIDATED * validated


def _evaluate(parts: Parts, counts: Counts) -> float:
    """Return the texts that are written or read under all conditions, each hidden patch one.

    A caption is written once for each image and once without one: two conditions show the same
    images. Without an image no choice is computed.
    """
    part = parts["evaluate"]
    captions = min(part["images"], counts["test_images"] if counts["test_captions"] else 0)
    spoken = counts["test_conversations"] or counts["validation_conversations"]
    questions = min(part["questions"], spoken * counts["turns"])
    choices = min(captions, part["likelihood_images"])
    pointed = min(captions or questions, part["pointing_images"])
    drawn = part.get("caption_samples", 0)  # artifacts of earlier versions have none
    written = (MODELS + drawn) * (captions + 1)  # the last model alone draws
    chosen = (CONDITIONS - 1) * MODELS * choices
    last = questions + min(part["questions"], spoken) + choices
    read = CONDITIONS * (MODELS * captions + last) + chosen
    return written + read + POINTED * pointed * parts["features"]["patches"]


_WORK: dict[str, Callable[[Parts, Counts], float]] = {
    "images": lambda parts, counts: counts["images"],
    "conversations": lambda parts, counts: counts["conversations"],
    "backbones": _backbones,
    "features": lambda parts, counts: counts["images"],
    "examples": _examples,
    "pretrain": _pretrain,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "publish": lambda parts, counts: 1.0,
}
