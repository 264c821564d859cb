"""JPEGs, ViT-B/32 with random weights, and shard jobs over them: what extraction is timed on.

`feature_extraction.py` and `fan_out.py` share it.
"""

import argparse
import hashlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from model.encoder import save_clip
from pipeline.data.schemas import IMAGE_FILES
from pipeline.features.extraction import Extraction, ShardJob
from storage.tables import write_table

NAME = "ViT-B-32"


def made_images(count: int) -> Iterator[bytes]:
    """Yield JPEGs of COCO's usual size, smooth with some noise."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(smooth + rng.integers(-12, 12, smooth.shape), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=90)
        yield stream.getvalue()


def write_random_clip(folder: Path) -> nn.Module:
    """Write a ViT-B/32 with random weights in open_clip's layout, and return it."""
    torch.manual_seed(0)
    clip, config = open_clip.create_model(NAME), open_clip.get_model_config(NAME)
    assert config is not None
    save_clip(clip, config, folder)
    return clip


def add_options(parser: argparse.ArgumentParser, images: int) -> None:
    """Add the options that say what is extracted and how."""
    parser.add_argument("--jpegs", type=Path, help="folder of JPEGs; others are made")
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")


class Inputs:
    """Images and weights in a folder, in the form that each side takes.

    Attributes:
        clip: Folder of the encoder, in open_clip's layout.
        weights: The same weights as one file.
        jpegs: Folder of the images as files.
    """

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.given, self.clip = given, folder / "clip"
        self.weights, self.jpegs = folder / "weights.safetensors", folder / "jpeg"
        self._files = folder / "files.parquet"
        save_file(write_random_clip(self.clip).state_dict(), self.weights)
        found = sorted(given.jpegs.glob("*.jpg")) if given.jpegs else []
        data = [path.read_bytes() for path in found[: given.images]]
        data += made_images(given.images - len(data))
        self.jpegs.mkdir()
        for number, each in enumerate(data):
            (self.jpegs / f"{number:06d}.jpg").write_bytes(each)
        self._keys = [hashlib.sha256(each).hexdigest() for each in data]
        rows = [{"sha256": k, "data": d} for k, d in zip(self._keys, data, strict=True)]
        write_table(self._files, rows, IMAGE_FILES)

    def few(self, count: int) -> Path:
        """Return a folder with the first so many images."""
        folder = self.jpegs.with_name("few")
        if not folder.is_dir():
            folder.mkdir()
            for path in sorted(self.jpegs.iterdir())[:count]:
                shutil.copy(path, folder)
        return folder

    def extraction(self, folder: Path, threads: int, precision: str = "fp32") -> Extraction:
        """Return what extracts into a folder."""
        batch, device = self.given.batch, self.given.device
        return Extraction(self.clip, -1, batch, 49, device, threads, folder, precision)

    def jobs(self, size: int) -> list[ShardJob]:
        """Return shards of so many images that hold them all."""
        starts = range(0, len(self._keys), size)
        return [self._job(number, start, size) for number, start in enumerate(starts)]

    def _job(self, number: int, start: int, size: int) -> ShardJob:
        keys = self._keys[start : start + size]
        common = {"image_id": 0, "width": 640, "height": 480, "split": "train"}
        files = {key: (self._files, start + at) for at, key in enumerate(keys)}
        return ShardJob(number, [common | {"sha256": key} for key in keys], {}, files)
