"""Peak memory of one pretraining step with Phi-2's 51,200 words, beside transformers' LLaVA.

Run it from the repository root: `python tests/benchmarks/training_memory.py`. Both sides train
LLaVA's projector before a frozen Phi of the demo's width on the same captions, five for each of 8
images, with AdamW. Each side is a process of its own that makes a small step first and then
measures a whole one twice: by torch's account of its tensors and by the peak of the resident set;
both are beyond what there was before the step (`tests/support/peak_memory.py`). Goal: at most half.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PhiForCausalLM

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model.objectives import standard
from model.projectors import Mlp2xGeluConfig
from model.vlm import build_vlm, freeze
from pipeline.training.collate import collate
from tests.support.peak_memory import peak_allocated, peak_resident
from tests.support.plain_training import PlainLlava, TinySizes

PER_IMAGE = 5
SIDES = {
    "plain": "transformers' LLaVA",
    "single": "ours, a row for each caption",
    "shared": "ours",
}


def captions_of(images: int, words: int) -> list[np.ndarray]:
    """Captions of 9 to 19 tokens, as COCO's mostly have."""
    rng = np.random.default_rng(0)
    return [rng.integers(1, words, rng.integers(9, 20)) for _ in range(images * PER_IMAGE)]


def plain(sizes: TinySizes) -> Callable[[int], None]:
    """A step of the plain side on some images."""
    side = PlainLlava(sizes, image_token=0)
    optimizer = torch.optim.AdamW(side.projector.parameters(), fused=True)

    def step(images: int) -> None:
        captions = [caption.tolist() for caption in captions_of(images, sizes.words)]
        pixels = torch.randn(images, 3, sizes.image, sizes.image)
        side.loss(pixels.repeat_interleave(PER_IMAGE, dim=0), captions).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(sizes: TinySizes, per_row: int) -> Callable[[int], None]:
    """A step of ours on some images, with some captions in each row."""
    lm = PhiForCausalLM(sizes.phi())
    vlm = build_vlm(Mlp2xGeluConfig(), sizes.vision, sizes.patches, lm)
    freeze(vlm.language_model)
    optimizer = torch.optim.AdamW(vlm.vision_prefix.parameters(), fused=True)

    def step(images: int) -> None:
        captions = captions_of(images, sizes.words)
        rows = len(captions) // per_row
        patches = torch.randn(rows, sizes.patches, sizes.vision)
        supervised = [np.ones(len(caption), np.bool_) for caption in captions]
        standard(vlm, collate(patches, captions, supervised, [per_row] * rows)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(name: str, words: int, images: int) -> dict[str, int]:
    """The peaks of one side, in bytes, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = TinySizes(words)
    step = plain(sizes) if name == "plain" else ours(sizes, 1 if name == "single" else PER_IMAGE)
    step(1)
    return {
        "resident": peak_resident(lambda: step(images)),
        "allocated": peak_allocated(lambda: step(images)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--words", type=int, default=51_200)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", choices=SIDES, help="measure one side and print JSON")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure(given.side, given.words, given.images)))
        return
    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side]
        command += ["--words", str(given.words), "--images", str(given.images)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[side] = json.loads(done.stdout)
    print(f"{given.images} images with {PER_IMAGE} captions each, {given.words} words")
    for side, label in SIDES.items():
        shown = "  ".join(
            f"{name} {peak / 2**20:7.1f} MiB ({peak / found['plain'][name]:.3f} of plain)"
            for name, peak in found[side].items()
        )
        print(f"{label:<29} {shown}")


if __name__ == "__main__":
    main()
