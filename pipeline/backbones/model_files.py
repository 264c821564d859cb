"""Which files of a published model are used: weights as safetensors, config, tokenizer, licence.

Never the repository's code, never a pickle, and no other files, so that a model gives the same
artifact from the Hub, from a cache that another program has filled, from a folder or from a URL.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.backbones.model_places import Place
from pipeline.backbones.model_sources import CLIP_FILES, CONFIG, INDEX, TOKENIZER, WEIGHTS
from pipeline.errors import PipelineError

SMALL = (
    CONFIG,
    TOKENIZER,
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
)
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_CLIP_PICKLES = ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt")


def bring_language_model(place: Place, folder: Path, say: Callable[[str], None]) -> None:
    """Put config, tokenizer and weights of a causal language model into a folder.

    The small files come first, so that an unusable model is reported before gigabytes are moved.

    Raises:
        PipelineError: A file is missing or is not what it should be.
        ModelError: transformers cannot load such a model without the repository's code.
        StorageError: The place cannot be read.
    """
    if not place.has(CONFIG):
        raise PipelineError(
            f"{place.title} has no {CONFIG}", "it must be a transformers language model"
        )
    if not place.has(TOKENIZER):
        say(f"  {place.title} has no {TOKENIZER}, without which no text can be read")
    if not place.has(WEIGHTS) and not place.has(INDEX):
        raise _no_weights(place, WEIGHTS, _PICKLES)
    place.bring([name for name in SMALL if place.has(name)], folder)
    _check_model(folder, place.title)
    if place.has(WEIGHTS):  # which transformers prefers to the shards, too
        weights = [WEIGHTS]
    else:
        place.bring([INDEX], folder)
        weights = _shards(folder / INDEX, place)
    place.bring(weights, folder)
    for name in weights:
        check_weights(folder / name, place.title)


def bring_clip(place: Place, folder: Path, names: tuple[str, str] = CLIP_FILES) -> None:
    """Put an encoder's weights into a folder, and its config where it has one.

    Raises:
        PipelineError: The weights are missing or broken.
        StorageError: The place cannot be read.
    """
    config, weights = names
    if not place.has(weights):
        raise _no_weights(place, weights, (*_CLIP_PICKLES, *_PICKLES))
    place.bring([*([config] if place.has(config) else []), weights], folder)
    check_weights(folder / weights, place.title)


def check_weights(path: Path, title: str) -> None:
    """Raise PipelineError if a file is not complete safetensors, such as a Git LFS pointer."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return
    except SafetensorError as error:
        with path.open("rb") as stream:
            pointer = stream.read(40).startswith(b"version https://git-lfs")
        reason = (
            "is a pointer of Git LFS"
            if pointer
            else f"is not a complete safetensors file ({error})"
        )
        remedy = "fetch it with `git lfs pull`" if pointer else "fetch or copy it again"
        raise PipelineError(f"{path.name} of {title} {reason}", remedy) from None


def _no_weights(place: Place, wanted: str, pickles: tuple[str, ...]) -> PipelineError:
    present = [name for name in pickles if place.has(name)]
    if not present:
        return PipelineError(f"{place.title} has no {wanted}", "check the name and the revision")
    return PipelineError(
        f"{place.title} has its weights only as {present[0]}, a pickle, which could run any code",
        "choose a revision or a copy with safetensors, or convert it where you trust it",
    )


def _check_model(folder: Path, title: str) -> None:
    from model.language import check_language_model

    read_json(folder / CONFIG, title)
    check_language_model(folder, title)


def _shards(index: Path, place: Place) -> list[str]:
    """Return the names of the files that an index of weights lists.

    Raises:
        PipelineError: It lists no file, or one that is missing.
    """
    listed = read_json(index, place.title).get("weight_map")
    names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    for name in names or ["nothing"]:
        if "/" in name or not name.endswith(".safetensors") or not place.has(name):
            raise PipelineError(
                f"{place.title} is incomplete: {index.name} lists {name}, which is missing",
                "fetch or copy the model again",
            )
    return names


def read_json(path: Path, title: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        PipelineError: The file holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise PipelineError(
            f"{path.name} of {title} is not a JSON object", "fetch or copy it again"
        )
    return content
