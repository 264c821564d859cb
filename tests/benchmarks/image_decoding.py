"""How fast JPEGs become the encoder's input, by several decoders, and how far features differ.

Run it from the repository root: `python tests/benchmarks/image_decoding.py`. Every way starts at
the bytes of a file and ends at the pixels that the encoder takes (`PatchEncoder.shrink`, unless a
way resizes by itself); they run in turns, on one thread. Images per processor second count the
whole way. Cosines are those of pooled features to today's way, "equal" is the share of images whose
pixels are the same bit for bit. The encoders are a ViT-B/32 with random weights, which resizes the
shorter side to 224 pixels, and EfficientNet-Lite0, to 256, where `make photos` has put it.

The images are rendered at COCO's size (640 by 480), and COCO's own where PHIVISION_REALDATA names
them. simplejpeg (libjpeg-turbo in a wheel) is installed by uv into a folder that is removed
afterwards, or found in --peer; PyTurboJPEG needs a libturbojpeg of the system.
"""

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from ctypes.util import find_library
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from model.decoding import decode_image
from model.encoder import PatchEncoder
from pipeline.data.stored_images import NO_LIMIT
from tests.benchmarks.helpers.extraction_inputs import made_images, write_random_clip
from tests.benchmarks.helpers.spread import spread

TODAY = "Pillow (today)"
LITE = Path(__file__).resolve().parents[2] / ".weights/tf_efficientnet_lite0"
INPUT = 224  # pixels of a side that both encoders take

Decode = Callable[[bytes], Any]
Pixels = NDArray[np.uint8]  # [height, width, 3]


class Way(NamedTuple):
    """How a file is decoded, and how that becomes the encoder's input."""

    decode: Decode
    shrink: Callable[[Any], Pixels]


def draft(side: int, data: bytes) -> Image.Image:
    """Decode at the smallest of libjpeg's scales whose sides are at least `side`."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (side, side))
    return image.convert("RGB")


def planes_of(data: bytes) -> torch.Tensor:
    """Decode with torchvision's libjpeg-turbo, to [3, height, width] uint8."""
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def by_torchvision(data: bytes) -> Image.Image:
    """Decode with torchvision, to what Pillow resizes."""
    return Image.fromarray(planes_of(data).permute(1, 2, 0).numpy())


def resized_by_torchvision(side: int, planes: torch.Tensor) -> Pixels:
    """Resize with torch's kernel for uint8, and crop."""
    resized = functional.resize(planes, [side], InterpolationMode.BICUBIC, antialias=True)
    return functional.center_crop(resized, [INPUT, INPUT]).permute(1, 2, 0).numpy()


def by_simplejpeg(simplejpeg: Any, data: bytes, **options: Any) -> Image.Image:
    """Decode with simplejpeg's libjpeg-turbo."""
    return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", **options))


def by_pyturbojpeg(decoder: Any, data: bytes, **options: Any) -> Image.Image:
    """Decode with the system's libturbojpeg."""
    return Image.fromarray(decoder.decode(data, pixel_format=0, **options))  # 0: RGB


def installed(folder: Path) -> Path:
    """Return a folder with simplejpeg and PyTurboJPEG, as far as uv and a registry give them."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is not None:
        place = ["--target", str(folder), "--no-deps", "--python", sys.executable]
        names = ["simplejpeg", "PyTurboJPEG"]
        subprocess.run([uv, "pip", "install", "-q", *place, *names], check=False)
    return folder


def peers(folder: Path, side: int) -> Iterator[tuple[str, Decode]]:
    """Yield the decoders of other packages, and say which are missing."""
    sys.path.append(str(folder))
    try:
        import simplejpeg
    except ImportError:
        print("skipped: simplejpeg, which no uv or registry gave")
    else:
        yield "simplejpeg", partial(by_simplejpeg, simplejpeg)
        quick = {"fastdct": True, "fastupsample": True}
        yield "simplejpeg, fast DCT", partial(by_simplejpeg, simplejpeg, **quick)
        scale = {"min_height": side, "min_width": side, "min_factor": 1}
        yield "simplejpeg, scaled", partial(by_simplejpeg, simplejpeg, **scale)
    if find_library("turbojpeg") is None:
        print("skipped: PyTurboJPEG, whose wheel has no libturbojpeg, nor has this system")
        return
    try:
        from turbojpeg import TurboJPEG
    except ImportError:
        print("skipped: PyTurboJPEG, which no uv or registry gave")
    else:
        yield "PyTurboJPEG", partial(by_pyturbojpeg, TurboJPEG())


def ways_to(encoder: PatchEncoder, side: int, others: Path) -> dict[str, Way]:
    """Return all ways to the input of an encoder, whose shorter side is first resized to `side`."""
    decoders: dict[str, Decode] = {
        TODAY: lambda data: decode_image(data, NO_LIMIT),
        "Pillow, scaled": partial(draft, side),
        "torchvision": by_torchvision,
        **dict(peers(others, side)),
    }
    ways = {name: Way(decode, encoder.shrink) for name, decode in decoders.items()}
    own = partial(resized_by_torchvision, side)
    return {**ways, "torchvision, resizing": Way(planes_of, own)}


def measure(
    data: Sequence[bytes], ways: dict[str, Way], encoder: PatchEncoder, repeats: int
) -> None:
    """Print one line for each way."""
    decoding: dict[str, list[float]] = {name: [] for name in ways}
    whole: dict[str, list[float]] = {name: [] for name in ways}
    pixels: dict[str, list[Pixels]] = {}
    for turn in range(repeats + 1):
        for name in sorted(ways, reverse=bool(turn % 2)):
            began = time.process_time()
            images = [ways[name].decode(each) for each in data]
            decoded = time.process_time()
            pixels[name] = [ways[name].shrink(image) for image in images]
            if turn:  # the first one is a warm-up
                decoding[name].append(decoded - began)
                whole[name].append(time.process_time() - began)
    features = {name: embedded(encoder, shrunk) for name, shrunk in pixels.items()}
    for name in ways:
        rates = [len(data) / seconds for seconds in whole[name]]
        gains = [today / ours for today, ours in zip(whole[TODAY], whole[name], strict=True)]
        part = 1000 * statistics.median(decoding[name]) / len(data)
        pairs = zip(pixels[name], pixels[TODAY], strict=True)
        equal = sum(np.array_equal(ours, today) for ours, today in pairs) / len(data)
        cosines = torch.nn.functional.cosine_similarity(features[name], features[TODAY])
        print(
            f"{name:22} {spread(rates, 0)} images/s, {spread(gains)} times today; "
            f"decoding alone {part:.2f} ms; {equal:.0%} equal, "
            f"cosine {cosines.median():.6f}, at least {cosines.min():.6f}",
            flush=True,
        )


def embedded(encoder: PatchEncoder, pixels: Sequence[Pixels]) -> torch.Tensor:
    """Return the pooled features [image, width] of shrunk images."""
    batches = [np.stack(pixels[at : at + 16]) for at in range(0, len(pixels), 16)]
    return torch.cat([encoder.encode_shrunk(batch, 16).pooled for batch in batches])


def main() -> None:
    """Print a line for each way and set of images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peer", type=Path, help="folder that has simplejpeg")
    parser.add_argument("--images", type=int, default=200, help="of each set, at most")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sets = {"rendered": list(made_images(given.images))}
    if real := os.environ.get("PHIVISION_REALDATA"):
        files = sorted((Path(real) / "coco").rglob("*.jpg"))[: given.images]
        sets["COCO's own"] = [path.read_bytes() for path in files]
    with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
        folder = Path(name)
        write_random_clip(folder / "clip")
        others = given.peer or installed(folder / "peer")
        for title, place, side in (
            ("ViT-B/32", folder / "clip", INPUT),
            ("EfficientNet-Lite0", LITE, 256),
        ):
            if not place.is_dir():
                print(f"skipped: {title}, which is not in {LITE.parent.name}")
                continue
            encoder = PatchEncoder(place, -1)
            for images, data in sets.items():
                size = sum(map(len, data)) / len(data) / 1024
                print(f"\n{title}, {len(data)} images, {images}, {size:.0f} KB each")
                measure(data, ways_to(encoder, side, others), encoder, given.repeats)


if __name__ == "__main__":
    main()
