"""A language model from one GGUF file: llama.cpp's format, weights mostly in a few bits.

transformers unpacks it into ordinary weights with the package `gguf`, so that no other code
handles GGUF; the precision lost by quantization stays lost.
"""

import io
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.errors import ModelError
from model.language_files import write_language_files

MAGIC = b"GGUF"


def write_gguf_model(path: Path, folder: Path, title: str) -> int:
    """Write a GGUF file as a folder in Hugging Face's layout and return the number of parameters.

    Weights are kept in bfloat16, whose rounding (8 bits) is finer than that of the usual
    quantizations to 4 to 6 bits, and which takes half the space of float32.

    Raises:
        ModelError: The package `gguf` is missing, or the file holds no language model that
            transformers knows.
    """
    if find_spec("gguf") is None:
        raise ModelError(
            f"{title} is a GGUF file, for which the package gguf is missing",
            "pip install 'phivision[gguf]'",
        )
    _check_magic(path, title)
    from transformers import GgufConfig  # only in newer versions than other code here needs

    kept = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        with redirect_stderr(io.StringIO()):  # hides its progress bars
            language_model: Any = AutoModelForCausalLM.from_pretrained(
                path.parent,
                dtype=torch.bfloat16,
                # Otherwise it stays packed where a package with kernels for that is installed.
                quantization_config=GgufConfig(dequantize=True),
                **kept,
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, **kept)
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{title} holds no language model that can be read: {reason}") from None
    # They would make a plain folder look like a packed model when it is loaded.
    language_model.hf_quantizer = None
    if hasattr(language_model.config, "quantization_config"):
        del language_model.config.quantization_config
    write_language_files(language_model, folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in language_model.parameters())


def _check_magic(path: Path, title: str) -> None:
    with path.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise ModelError(f"{title} is not a GGUF file")
