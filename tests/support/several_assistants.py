"""A store with the assistants of several runs, which answer differently."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from model.bundle import BUNDLE, PREFIX
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest
from storage.store.runs import write_ref
from tests.support.store_fixtures import add


def vary(
    store: ArtifactStore, base: Manifest, folder: Path, seed: int, noise: float, **card: Any
) -> Manifest:
    """Commit a copy of an assistant whose projector is another one.

    Args:
        store: The store.
        base: The assistant that is copied.
        folder: For files on the way.
        seed: Of the noise.
        noise: Standard deviation of what is added to the projector's weights.
        **card: Changed entries of its card.
    """
    artifact = store.artifact(base)
    files = {name: artifact.path(name).read_bytes() for name in artifact.names}
    generator = torch.Generator().manual_seed(seed)
    changed = {
        name: tensor + noise * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load(files[PREFIX]).items()
    }
    files[PREFIX] = save(changed)
    files[BUNDLE] = json.dumps({**json.loads(files[BUNDLE]), **card}).encode()
    return add(store, folder, files, {**base.payload, "varied": seed})


def record(store: ArtifactStore, name: str, number: int, publish: Manifest, tag: str = "") -> None:
    """Write the record of a run that ended with an assistant."""
    stages = {"publish": {"fingerprint": publish.fingerprint, "digest": publish.digest}}
    body = {"run": name, "number": number, "created": 0.0, "seconds": 1.0, "recipe": {}}
    store.write(f"runs/{name}.json", json.dumps({**body, "stages": stages, "made": []}).encode())
    if tag:
        write_ref(store, tag, name)
