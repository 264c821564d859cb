"""Whether pretraining has learned to see: how much likelier captions are with their own image.

Finetuning costs most of a run. Before it, `pretrain` measures the effect of the image, and
`finetune` does not start if there is none.
"""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from model.vlm import VisionLanguageModel
from pipeline.engine.stage import InputArtifact
from pipeline.errors import PipelineError
from pipeline.training.example_sets import ExampleSet

FILE = "image_effect.json"
IMAGES = 256  # held-out images; with 1,000 captions the noise is about 0.005 nats


class ImageEffect(NamedTuple):
    """Mean nats per token of held-out captions.

    Attributes:
        own: With their own image.
        other: With another one.
        images: Number of images; 0 if there was only one.
    """

    own: float
    other: float
    images: int

    @property
    def gain(self) -> float:
        """Nats per token gained by the own image; about 0 if the image changes nothing."""
        return self.other - self.own


def measure_effect(
    vlm: VisionLanguageModel, held_out: ExampleSet, size: int, device: str, *, half: bool
) -> ImageEffect:
    """Return the effect of the own image on held-out examples.

    Args:
        vlm: The model; it stays on the device.
        held_out: Examples that were not trained on.
        size: Rows per forward pass.
        device: Where to compute.
        half: Whether products are in bf16, as in training.
    """
    rows = held_out.one_row_per_image()[:IMAGES]
    if len(rows) < 2:
        return ImageEffect(0.0, 0.0, 0)
    others = np.roll(rows, 1)
    vlm = vlm.to(device).eval()
    sums, tokens = np.zeros(2), 0
    edges = [*range(0, len(rows), size), len(rows)]
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
        for start, stop in pairwise(edges):
            own = held_out.micro_batch(rows[start:stop], 1)
            shown = held_out.micro_batch(others[start:stop], 1).batch.patches
            for place, batch in enumerate((own.batch, replace(own.batch, patches=shown))):
                sums[place] += vlm(batch.to(device)).double().sum().item()
            tokens += own.targets
    own_nll, other_nll = (sums / tokens).tolist()
    return ImageEffect(round(own_nll, 4), round(other_nll, 4), len(rows))


def write_effect(effect: ImageEffect, folder: Path) -> None:
    """Write the measured effect beside the pretrained weights."""
    (folder / FILE).write_text(json.dumps(effect._asdict(), indent=1))


def refuse_blind(pretrained: InputArtifact, least: float) -> None:
    """Stop before finetuning if pretraining left the image without effect.

    Args:
        pretrained: The `pretrain` artifact.
        least: Nats per token that the own image must gain; with 0 nothing is refused.

    Raises:
        PipelineError: It gains less.
    """
    effect = ImageEffect(**json.loads(pretrained.path(FILE).read_text()))
    if not least or not effect.images or effect.gain >= least:
        return
    raise PipelineError(
        f"pretraining left the image without effect: held-out captions have {effect.own:.3f} nats "
        f"per token with their own image and {effect.other:.3f} with another one, over "
        f"{effect.images} images; finetune.least_image_gain asks for {least}",
        "look at pretrain.learning_rate, epochs and projector (docs/photographs.md); "
        "--set finetune.least_image_gain=0 finetunes anyway",
    )
