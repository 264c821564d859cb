"""A store with the assistants of several runs, which answer differently."""

import json
from pathlib import Path

from safetensors.torch import load, save

from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest
from storage.store.runs import write_ref
from tests.support.store_fixtures import add

LANGUAGE = "lm/model.safetensors"


def vary(store: ArtifactStore, base: Manifest, folder: Path, half: int) -> Manifest:
    """Commit a copy of an assistant that writes with half of the words only.

    Two copies of different halves never answer alike, whatever a processor's rounding does to
    random weights.

    Args:
        store: The store.
        base: The assistant that is copied.
        folder: For files on the way.
        half: 0 for the tokens of even ids, 1 for those of odd ones.
    """
    artifact = store.artifact(base)
    files = {name: artifact.path(name).read_bytes() for name in artifact.names}
    weights = load(files[LANGUAGE])
    weights["lm_head.bias"][1 - half :: 2] = -1e4
    files[LANGUAGE] = save(weights, metadata={"format": "pt"})
    return add(store, folder, files, {**base.payload, "half": half})


def record(store: ArtifactStore, name: str, number: int, publish: Manifest, tag: str = "") -> None:
    """Write the record of a run that ended with an assistant."""
    stages = {"publish": {"fingerprint": publish.fingerprint, "digest": publish.digest}}
    body = {"run": name, "number": number, "created": 0.0, "seconds": 1.0, "recipe": {}}
    store.write(f"runs/{name}.json", json.dumps({**body, "stages": stages, "made": []}).encode())
    if tag:
        write_ref(store, tag, name)
