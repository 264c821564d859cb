"""A small CLIP of open_clip's classes, trained contrastively with open_clip's own loss."""

import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from model.encoder import CONFIG, save_clip
from model.training_schedule import warmup_cosine

MEAN_STD = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
POSITION_SCALE = 1.0  # standard deviation of the initial position embeddings
CONTEXT = 32  # text tokens; rendered and most real captions are shorter


def tiny_clip_config(
    *,
    image_size: int,
    patch_size: int,
    width: int,
    layers: int,
    text_width: int,
    text_layers: int,
    embed: int,
) -> dict[str, Any]:
    """Return an open_clip model config with heads of 32 dimensions."""
    return {
        "embed_dim": embed,
        "quick_gelu": False,
        "vision_cfg": {
            "image_size": image_size,
            "layers": layers,
            "width": width,
            "head_width": 32,
            "patch_size": patch_size,
            # With a class token, patches may encode anything that helps that token. With a mean
            # over patches, each patch must encode its own content, so a language model that is
            # trained on questions about one of two objects alone answers 72 % of them after 800
            # steps, and 47 % with a class token (seed 0).
            "pool_type": "avg",
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": 49408,
            "width": text_width,
            "heads": max(1, text_width // 32),
            "layers": text_layers,
        },
    }


def train_tiny_clip(
    config: dict[str, Any],
    folder: Path,
    images: Callable[[Callable[[Image.Image], Tensor]], Float[Tensor, "image 3 side side"]],
    captions: Sequence[Sequence[str]],
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    advance: Callable[[int, str], None],
) -> float:
    """Train a CLIP from random weights, write it to a folder, and return the last loss.

    Args:
        config: From `tiny_clip_config`.
        folder: Where the model goes, in open_clip's layout.
        images: Given the preprocessing, returns all prepared images.
        captions: Captions of each image; one is drawn per epoch.
        epochs: Passes over the images.
        batch: Images per step; all others in the step are negatives.
        learning_rate: Peak of a warm-up and cosine schedule.
        seed: Seed of weights, order and drawn captions.
        advance: Called after every step.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": MEAN_STD}))
    clip, _, preprocess = _untrained(folder)
    # open_clip's own scale is tiny beside a patch's content, and a minute of training does not
    # raise it: an object's place made up 0.2 % of the variance of its patch, now a quarter. With
    # half this scale it made up 5 %, and looking up places was learned too late (seed 0).
    nn.init.normal_(clip.visual.positional_embedding, std=POSITION_SCALE)
    pixels = images(preprocess)
    batch = min(batch, len(captions))
    steps = epochs * (len(captions) // batch)
    batches = _batches(captions, epochs, batch, seed)
    loss = _fit(clip, pixels, batches, steps, learning_rate, advance)
    save_clip(clip, config, folder)
    return loss


def _fit(
    clip: Any,
    pixels: Float[Tensor, "image 3 side side"],
    batches: Iterable[tuple[list[int], list[str]]],
    steps: int,
    learning_rate: float,
    advance: Callable[[int, str], None],
) -> float:
    """Train on images with a caption each, one batch per step, and return the last loss."""
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    loss_function = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(_groups(clip), lr=learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = warmup_cosine(optimizer, steps, warmup_share=0.1)
    loss = torch.zeros(())
    for chosen, texts in batches:
        image, text, scale = clip(pixels[chosen], tokenizer(texts))
        loss = loss_function(image, text, scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, 4.6052)  # at most 100, as in the CLIP paper
        advance(1, f"loss {loss.item():.3f}")
    return float(loss.detach())


def _batches(
    captions: Sequence[Sequence[str]], epochs: int, batch: int, seed: int
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield the images of every step, each with one of its captions."""
    rng = random.Random(seed)  # noqa: S311
    for _ in range(epochs):
        order = rng.sample(range(len(captions)), len(captions))
        for step in range(len(captions) // batch):
            chosen = order[step * batch : (step + 1) * batch]
            yield chosen, [rng.choice(captions[i]) for i in chosen]


def _untrained(folder: Path) -> tuple[Any, Any, Any]:
    """Build a folder's model with random weights, without open_clip's warning about them."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        return open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
    finally:
        root.setLevel(level)


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices only, as in the CLIP paper."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
