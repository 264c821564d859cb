"""Exports as GGUF of bundles with random weights."""

from pathlib import Path
from typing import Any

from flows.commands.export import export_to
from model.projectors import LinearConfig
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from tests.support.llava_bundle import publish_bundle

KINDS: dict[str, dict[str, Any]] = {
    "llama, tied": {"family": "llama", "tied": True},
    "llama 3's rotation": {
        "family": "llama",
        "tied": True,
        "rotation": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen2, untied": {
        "family": "qwen2",
        "tied": False,
        "unused": 5,
        "layer": -2,
        "projector": LinearConfig(),
        "opening": "<|endoftext|>You see images.\n",
        "between": "\n",
    },
    "qwen3, tied": {"family": "qwen3", "tied": True, "unused": 1},
    "mistral, untied": {"family": "mistral", "tied": False},
    "phi, with a bias of the output layer": {"family": "phi", "tied": False, "unused": 3},
}


def export_gguf(root: Path, bundle: Path) -> Path:
    """Publish a bundle in a new store below `root`, export it, and return the folder."""
    settings = Settings(store=str(root / "store"), device="cpu")
    store = ArtifactStore(settings.store, settings.work / "cache")
    publish_bundle(store, bundle, root / "work")
    export_to(settings, str(root / "out"), "merged", 0, public=False, style="gguf")
    return root / "out"
