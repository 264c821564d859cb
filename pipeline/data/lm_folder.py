"""The end-of-text token of a language model's folder, read without torch."""

import json
from pathlib import Path

from pipeline.errors import PipelineError


def eos_id(folder: Path) -> int:
    """Return the id that ends a text, from the model's own config.

    Raises:
        PipelineError: The config names none.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int):
            return value
    raise PipelineError(
        f"{folder}/config.json names no eos_token_id", "a model that cannot stop cannot be trained"
    )
